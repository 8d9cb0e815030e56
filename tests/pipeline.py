"""Our pipeline through DVC on the tiny model of conftest: what test_grid and the fault drills share."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from conftest import TINY_STUDY, TOP, contents
from ruamel.yaml import YAML

from feature_survival.artifacts import timeline

PROGRAMS = Path(sys.executable).parent
ENVIRONMENT = {
    **os.environ,
    "CUDA_VISIBLE_DEVICES": "",
    "DVC_NO_ANALYTICS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
    "TQDM_DISABLE": "1",
}
STAGES = ("base", "prune", "cache")
STUDY = {**TINY_STUDY, "study.conditions": ["dense", "wanda-50"], "report.conditions": ["wanda-50"]}
WRITTEN = ("artifacts", "results", "paper_figures")


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in a project, as a user would type it."""
    return subprocess.run(
        words, cwd=folder, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, timeout=900, check=False
    )


def start(folder: Path, *words: str, **streams: int) -> subprocess.Popen[str]:
    """A command under way, in a session of its own as a terminal's; what it says is read as it comes."""
    return subprocess.Popen(
        words,
        cwd=folder,
        env=ENVIRONMENT,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **streams},
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )


def dvc(folder: Path, *words: str) -> str:
    """A command of DVC's that must succeed; what it said."""
    ended = run(folder, "dvc", *words)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def outcome(folder: Path) -> dict[str, bytes]:
    """What a grid leaves: artifacts, results, figures and dvc.lock; not its time line."""
    left = {f"{top}/{name}": content for top in WRITTEN for name, content in contents(folder / top).items()}
    left.pop(str(timeline(Path())), None)
    return {**left, "dvc.lock": (folder / "dvc.lock").read_bytes()}


def lay_out(folder: Path, stages: tuple[str, ...] = ()) -> None:
    """Make a folder with params.yaml and data a repository of our pipeline, or of some of its stages."""
    pipeline = YAML(typ="safe").load(TOP / "dvc.yaml")
    named = {name: content for name, content in pipeline["stages"].items() if not stages or name in stages}
    YAML().dump({"stages": named}, folder / "dvc.yaml")
    shutil.copytree(TOP / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for file in ("claims.yaml", "requirements.lock", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore"):
        (folder / file).parent.mkdir(exist_ok=True)
        shutil.copy(TOP / file, folder / file)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)

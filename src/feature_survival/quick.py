"""A first look: the same DVC stages on a small grid, in a scratch clone that leaves this checkout alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from feature_survival.artifacts import report
from feature_survival.config import Params, load
from feature_survival.schema import InputError, set_key, validate

MARK = ".scratch-clone"  # a folder that holds it is ours to delete


def run(root: Path, scratch: Path, overrides: list[str]) -> None:
    """Clone the checkout as it is (uncommitted changes too), override its params, `dvc repro`, show the table."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    changes = dict(load(root / "params.yaml").quick)
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise InputError(f"--set {override!r}: key.path=value is needed")
        try:
            changes[key] = YAML(typ="safe").load(value)
        except YAMLError:
            raise InputError(f"--set {override!r}: {value!r} is not YAML") from None
    yaml = YAML()
    content = yaml.load(root / "params.yaml")
    for key, value in changes.items():
        set_key(content, key, value, "params.yaml with the overrides")
    validate(json.loads(json.dumps(content)), "params.yaml with the overrides", Params)
    clone(root, scratch)
    yaml.dump(content, scratch / "params.yaml")
    for command in (["feature-survival", "data"], ["dvc", "repro"]):
        perform(command, scratch)
    print((scratch / "paper_figures" / "cells.md").read_text(), end="")
    print(f"figure: {scratch / 'paper_figures' / 'survival.png'}")
    print(f"report: {report(scratch)}")


def clone(root: Path, scratch: Path) -> None:
    """A fresh repository with the checkout's files (tracked, and new ones git does not ignore)."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        raise InputError(f"{root.resolve()}: not a git checkout; a scratch clone has the files git knows")
    if scratch.exists() and not scratch.is_dir():
        raise InputError(f"{scratch}: is a file; give an empty or new folder")
    if scratch.exists() and any(scratch.iterdir()) and not (scratch / MARK).exists():
        raise InputError(f"{scratch}: holds other things than a scratch clone; give an empty or new folder")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    (scratch / MARK).touch()
    for name in filter(None, listed.stdout.split("\0")):
        if (root / name).is_file():
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, scratch / name)
    (scratch / "dvc.lock").unlink(missing_ok=True)  # the small grid's own states, not the study's
    subprocess.run(["git", "init", "--quiet"], cwd=scratch, check=True)


def perform(command: list[str], scratch: Path, **settings: str) -> None:
    """Run a command in a scratch clone, with further environment variables; InputError where it fails.

    The environment's programs come first: dvc and feature-survival of this interpreter, not others on the PATH.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    code = subprocess.run(command, cwd=scratch, env={**os.environ, "PATH": path, **settings}).returncode
    if code:
        raise InputError(f"{scratch}: {' '.join(command)} ended with exit code {code}; its message is above")

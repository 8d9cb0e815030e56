"""The miniature study that is finished once and then ill-treated in copies, and the table of what was tried."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pipeline
import pytest
from conftest import WriteParams

HERE = Path(__file__).parent
FULL = bool(os.environ.get("FAULT_DRILL"))  # make drill: every fault at every stage, twenty kills
COMMANDS = [
    "prune tiny",
    "cache tiny dense",
    "cache tiny wanda-50",
    "sae tiny dense",
    "sae tiny wanda-50",
    "metrics tiny dense",
    "metrics tiny wanda-50",
    "variants tiny resid_post",
    "variants tiny attention",
    "contexts tiny wanda-50",
    "release tiny dense",
    "summarize",
    "figure all",
    "tables",
    "claims",
    "report",
]
STUDY = {**pipeline.STUDY, "corpus.packages": ["mpmath"]}


def stages(folder: Path, fault: str, commands: list[str], *wrap: str, **environment: str) -> list[dict[str, Any]]:
    """What stages.py says of each command; `wrap` leads its command line."""
    words = [*wrap, sys.executable, str(HERE / "stages.py"), str(folder), fault, *commands]
    ended = pipeline.run(folder, *words, **environment)
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="session")
def blank(
    tmp_path_factory: pytest.TempPathFactory,
    write_params: WriteParams,
    _trained: Callable[[Path, WriteParams], None],
) -> Path:
    """A project of which only the base model is there."""
    folder = tmp_path_factory.mktemp("faults") / "blank"
    _trained(folder, write_params)
    write_params(folder, STUDY)
    (folder / "results").mkdir()
    for name in ("claims.yaml", "requirements.lock", "results/spread.csv"):
        shutil.copy(pipeline.TOP / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def finished(blank: Path) -> Path:
    """The project with every stage done; nobody is to change it."""
    folder = Path(shutil.copytree(blank, blank.with_name("finished")))
    for ended in stages(folder, "none", COMMANDS):
        assert ended["code"] == 0, ended
    return folder


@pytest.fixture(scope="session")
def recorded(finished: Path) -> Path:
    """The same under DVC, in the store and in git; nobody is to change it."""
    folder = Path(shutil.copytree(finished, finished.with_name("recorded")))
    pipeline.lay_out(folder)
    pipeline.dvc(folder, "commit", "--force")
    pipeline.dvc(folder, "push")
    author = ("-c", "user.name=reader", "-c", "user.email=")
    for words in (["add", "--all"], [*author, "commit", "--quiet", "--message", "a release"]):
        assert pipeline.run(folder, "git", *words).returncode == 0
    return folder


Tried = Callable[[str, int, str], None]
_rows: dict[str, tuple[int, str]] = {}


@pytest.fixture(scope="session")
def tried() -> Iterator[Tried]:
    """Note (fault, times tried, what came of it). `make drill` writes the table."""

    def note(fault: str, times: int, outcome: str) -> None:
        before, _ = _rows.get(fault, (0, ""))
        _rows[fault] = (before + times, outcome)

    yield note
    if FULL and _rows:
        lines = [f"| {fault} | {times} | {outcome} | 0 |" for fault, (times, outcome) in _rows.items()]
        head = ["# Faults tried by `make drill`, on the miniature study", ""]
        head += ["A fault is counted once its test has found every result whole.", ""]
        columns = ["| fault | times | what came of it | results lost |", "| --- | ---: | --- | ---: |"]
        (HERE / "table.md").write_text("\n".join([*head, *columns, *lines]) + "\n")

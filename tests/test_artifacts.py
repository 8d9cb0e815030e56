"""Every file appears whole or not at all."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from conftest import contents, truncate
from safetensors.torch import save_file

from feature_survival.artifacts import atomic_directory, atomic_file, read_json, read_tensors, write_json
from feature_survival.schema import InputError

Atomic = Callable[[Path], AbstractContextManager[Path]]
KINDS = pytest.mark.parametrize("atomic", [atomic_directory, atomic_file])


def write(atomic: Atomic, path: Path, text: str, error: Exception | None = None) -> None:
    """Write an artifact of either kind; raises `error` at the end of the block."""
    with atomic(path) as partial:
        (partial / "content" if partial.is_dir() else partial).write_text(text)
        if error:
            raise error


def read(path: Path) -> str:
    return (path / "content" if path.is_dir() else path).read_text()


def exit_code(atomic: Atomic, path: Path, statement: str) -> int:
    """In another process: write `new`, then run `statement` inside the block; there, die() is kill -9."""
    code = f"""
import os, signal
from pathlib import Path
from feature_survival.artifacts import {atomic.__name__}
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
with {atomic.__name__}(Path({str(path)!r})) as partial:
    (partial / "content" if partial.is_dir() else partial).write_text("new")
    {statement}
"""
    return subprocess.run([sys.executable, "-c", code], check=False).returncode


@KINDS
def test_a_finished_block_replaces_the_old_artifact_and_leaves_nothing_else(atomic: Atomic, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "name.csv"
    for text in ("old", "new"):
        write(atomic, path, text)
        assert read(path) == text
        assert list(path.parent.iterdir()) == [path]


@KINDS
def test_an_exception_inside_the_block_leaves_the_old_artifact_alone(atomic: Atomic, tmp_path: Path) -> None:
    path = tmp_path / "name.csv"
    write(atomic, path, "old")
    with pytest.raises(KeyError):
        write(atomic, path, "new", KeyError())
    assert read(path) == "old"
    assert list(tmp_path.iterdir()) == [path]


@KINDS
def test_a_kill_inside_the_block_leaves_the_old_artifact_and_the_next_write_cleans_up(
    atomic: Atomic, tmp_path: Path
) -> None:
    path = tmp_path / "name.csv"
    write(atomic, path, "old")
    assert exit_code(atomic, path, "die()") == -signal.SIGKILL
    assert read(path) == "old"
    write(atomic, path, "newer")
    assert read(path) == "newer"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("rename", [1, 2])
def test_a_kill_at_a_rename_loses_neither_old_nor_new_folder(rename: int, tmp_path: Path) -> None:
    path = tmp_path / "name"
    write(atomic_directory, path, "old")
    exit_code(
        atomic_directory,
        path,
        f"real = os.rename; left = [{rename}]\n"
        "    def step(*a): left[0] -= 1; return real(*a) if left[0] else die()\n"
        "    os.rename = step",
    )
    with pytest.raises(KeyError):
        write(atomic_directory, path, "third", KeyError())
    assert read(path) in ("old", "new")


def test_json_is_sorted_and_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": 0.5})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": 0.5,\n  "b": 1\n}\n'
    assert read_json(tmp_path / "a.json") == {"a": 0.5, "b": 1}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", {"a": float("nan")})


def test_missing_and_broken_json_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.json: no such file; run the stage that writes it"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(InputError, match=r"a\.json: not JSON"):
        read_json(tmp_path / "a.json")


def test_missing_truncated_and_foreign_tensors_are_input_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(InputError, match=r"a\.safetensors: no such file"):
        read_tensors(path)
    save_file({"x": torch.arange(100)}, path)
    assert torch.equal(read_tensors(path)["x"], torch.arange(100))
    truncate(path)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"a\.safetensors: not a whole safetensors file"):
        read_tensors(path)
    path.write_text("an html page, say")
    with pytest.raises(InputError, match=r"a\.safetensors: not a whole safetensors file"):
        read_tensors(path)
    assert contents(tmp_path).keys() == before.keys()

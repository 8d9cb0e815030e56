"""kill -9 at random moments, the whole process group at once; run again, and every byte is as if nothing had been."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pipeline
import pytest

from feature_survival.dvclock import NAME, keep, mend
from feature_survival.schema import InputError

from .conftest import FULL, Tried

KILLS, ROUNDS = (5, 4) if FULL else (4, 1)
Make = Callable[[str], Path]


def killed(folder: Path, words: list[str], seconds: float) -> bool:
    """Start a command as a terminal would, and kill all of it after some seconds; False if it was done before."""
    with pipeline.start(folder, *words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        try:
            running.wait(seconds)
            return False
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            return True


@pytest.fixture(scope="session")
def undisturbed(
    blank: Path, serial: Path, fresh: Make, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, bytes], float, Make]:
    """What is left and how long it takes where nothing is killed; how to make another. In the drill all stages."""
    if not FULL:
        make = fresh
    else:
        template = Path(shutil.copytree(blank, blank.with_name("template")))
        shutil.rmtree(template / "artifacts")
        pipeline.lay_out(template)

        def make(name: str) -> Path:
            return Path(shutil.copytree(template, template.with_name(name)))

    folder, start = make("undisturbed"), time.monotonic()
    pipeline.dvc(folder, "repro")
    return pipeline.outcome(folder), time.monotonic() - start, make


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_run_killed_at_random_moments_ends_in_the_same_bytes(
    undisturbed: tuple[dict[str, bytes], float, Make], tried: Tried, number: int
) -> None:
    expected, duration, make = undisturbed
    moments, times = random.Random(number), 0
    while times < KILLS:
        folder = make(f"killed-{number}-{times}")
        while times < KILLS and killed(folder, ["dvc", "repro"], moments.uniform(0, duration / 2)):
            times += 1
        said = pipeline.run(folder, "feature-survival", "check")  # as make reproduce does: mends what DVC would refuse
        assert said.returncode == 0, said
        pipeline.dvc(folder, "repro")
        assert pipeline.outcome(folder) == expected
    tried("kill -9 of dvc repro and its stage", times, "same bytes after the next run")


@pytest.mark.skipif(not FULL, reason="make drill; test_grid kills its workers and its coordinator")
def test_a_grid_killed_at_random_moments_ends_in_the_same_bytes(
    undisturbed: tuple[dict[str, bytes], float, Make], tried: Tried
) -> None:
    expected, duration, make = undisturbed
    folder, moments = make("killed-grid"), random.Random(9)
    words = ["feature-survival", "grid", "--workers", "2", "--threads", "1"]
    times = sum(killed(folder, words, moments.uniform(4, duration / 2)) for _ in range(4))
    ended = pipeline.run(folder, *words)
    assert ended.returncode == 0, ended.stderr
    assert pipeline.outcome(folder) == expected
    tried("kill -9 of feature-survival grid", times, "same bytes after the next run")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_dvc_lock_that_a_kill_cut_off_is_put_back(
    serial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: Tried, share: float
) -> None:
    """DVC writes it in place, so that a kill may leave the beginning of it."""
    whole = (serial / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(whole)
    monkeypatch.setenv("DVC_STAGE", "sae@tiny-dense")
    keep(tmp_path)
    assert mend(tmp_path) == ""
    (tmp_path / NAME).write_bytes(whole[: int(share * len(whole))].rpartition(b" ")[0])
    assert mend(tmp_path) == "dvc.lock: was cut off by a kill; put back as it was when the last stage began"
    assert (tmp_path / NAME).read_bytes() == whole and mend(tmp_path) == ""
    tried("dvc.lock cut off", 1, "put back from a whole copy by feature-survival check")


def test_a_kill_at_the_first_dvc_lock_leaves_one_of_no_stages(
    fresh: Make, monkeypatch: pytest.MonkeyPatch, tried: Tried
) -> None:
    folder = fresh("first")
    (folder / NAME).unlink()
    monkeypatch.setenv("DVC_STAGE", "base@tiny")
    keep(folder)
    (folder / NAME).touch()
    assert mend(folder)
    assert "base@tiny" in pipeline.dvc(folder, "status")
    tried("dvc.lock cut off", 1, "put back from a whole copy by feature-survival check")


def test_a_cut_dvc_lock_without_a_copy_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / NAME).touch()
    with pytest.raises(InputError, match=r"dvc\.lock: cut off; put it back \(git checkout dvc\.lock\)"):
        mend(tmp_path)

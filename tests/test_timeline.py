"""The time line: a line of every stage that ends well, whoever starts it; and its picture."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import TOP
from matplotlib.image import imread

from feature_survival.artifacts import timeline
from feature_survival.schema import InputError
from feature_survival.timeline import COLUMNS, draw, read, record

BEFORE = TOP / "benchmarks" / "timeline_before.csv"


def log_of(path: Path, *rows: str) -> Path:
    path.write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    return path


def test_stages_that_end_at_once_leave_a_line_each_below_one_header(tmp_path: Path) -> None:
    code = "from pathlib import Path; from feature_survival.timeline import record; record(Path(), '', 0.0)"
    running = [
        subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "DVC_STAGE": f"cache@{number}"})
        for number in range(4)
    ]
    assert [process.wait() for process in running] == [0] * 4
    rows = pd.read_csv(timeline(tmp_path))
    assert tuple(rows.columns) == COLUMNS and sorted(rows["stage"]) == [f"cache@{number}" for number in range(4)]


def test_a_command_is_logged_by_itself_where_no_one_named_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    start = time.time() - 2
    record(tmp_path, "cache tiny dense", start)
    (row,) = pd.read_csv(timeline(tmp_path)).itertuples()
    assert row.stage == "cache tiny dense" and row.threads == 3 and pd.isna(row.worker)
    assert row.start == pytest.approx(start, abs=0.01) and row.end >= row.start + 1.99


def test_a_log_that_cannot_be_written_fails_no_stage(tmp_path: Path) -> None:
    timeline(tmp_path).mkdir(parents=True)
    record(tmp_path, "cache", 0.0)
    assert list(timeline(tmp_path).iterdir()) == []


def test_a_stage_is_logged_when_it_has_ended_well_and_only_then(
    tmp_path: Path, cli: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DVC_STAGE", raising=False)
    assert cli(tmp_path, "figure", "survival").code == 2
    assert not timeline(tmp_path).exists()
    (tmp_path / "results").symlink_to(TOP / "results")
    assert cli(tmp_path, "figure", "survival").code == 0
    assert list(pd.read_csv(timeline(tmp_path))["stage"]) == ["figure survival"]


def test_of_a_stage_that_ran_twice_the_last_run_counts_and_lanes_hold_one_stage_at_a_time(tmp_path: Path) -> None:
    log = log_of(
        tmp_path / "log.csv",
        "base@a,,0,50,2",
        "base@a,,100,160,2",
        "prune@a,,160,190,2",
        "figures@x,,170,220,2",
    )
    rows = read(log)
    assert list(rows["stage"]) == ["base@a", "prune@a", "figures@x"]
    assert list(rows["start"]) == [0, 1, 70 / 60] and list(rows["kind"]) == ["base", "prune", "others"]
    assert list(rows["lane"]) == ["lane 1", "lane 1", "lane 2"]
    log_of(log, "base@a,0,0,60,1", "base@b,1,0,60,1", "cache@a,0,61,70,1")
    assert list(read(log)["lane"]) == ["worker 0", "worker 1", "worker 0"]


def test_two_logs_are_drawn_below_each_other_and_summed_up(tmp_path: Path) -> None:
    grid = log_of(tmp_path / "grid.csv", "base@a,0,0,60,1", "base@b,1,30,90,1", "cache@a,0,150,180,1")
    said = draw([BEFORE, grid], tmp_path / "both.png").splitlines()
    assert said[1] == f"{grid}: 3 stages, 3.0 minutes, 2.5 of work, 1.0 idle"
    draw([grid], tmp_path / "one.png")
    both, one = imread(tmp_path / "both.png"), imread(tmp_path / "one.png")
    assert both.shape[0] > 1.5 * one.shape[0]


def test_what_cannot_be_drawn_is_refused_in_one_line(tmp_path: Path, cli: Callable) -> None:
    ended = cli(tmp_path, "timeline")
    assert ended.code == 2 and ended.err.startswith("error: artifacts/timeline.csv: no such file")
    with pytest.raises(InputError, match="no stage stands there"):
        draw([log_of(tmp_path / "log.csv")], tmp_path / "log.png")
    with pytest.raises(InputError, match=r"--out: .*\.txt: allowed: \.png, \.pdf"):
        draw([BEFORE], tmp_path / "log.txt")

"""What stands beside every result: the machine, threads and versions it was made with."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import TOP

from feature_survival.artifacts import timeline
from feature_survival.environment import FIELDS, describe, differences, read, write
from feature_survival.timeline import COLUMNS, record

OLD = (TOP / "benchmarks" / "timeline_before.csv").read_text()  # of a release that recorded times alone


def test_this_process_is_described_by_every_field() -> None:
    found = describe()
    assert set(found) == set(FIELDS)
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert found["python"] == platform.python_version() and found["device"] == "cpu"
    assert found["instructions"] == torch.backends.cpu.get_cpu_capability()


def test_a_line_joins_an_older_log_of_fewer_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "metrics@tiny-dense")
    timeline(tmp_path).parent.mkdir()
    timeline(tmp_path).write_text(OLD)
    record(tmp_path, "", 0.0)
    record(tmp_path, "", 1.0)
    rows = pd.read_csv(timeline(tmp_path))
    assert tuple(rows.columns) == COLUMNS and len(rows) == len(OLD.splitlines()) + 1
    assert rows.iloc[0]["stage"] == "base@mini-llama3" and pd.isna(rows.iloc[0]["cpu"])
    assert rows.iloc[-1]["start"] == 1.0 and rows.iloc[-1]["torch"] == describe()["torch"]


def test_the_published_environment_has_each_stage_once_as_it_last_ran(
    tmp_path: Path, cli: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    for stage in ("base@tiny", "sae tiny wanda-50", "figure all", "base@tiny"):
        monkeypatch.setenv("DVC_STAGE", stage)
        record(tmp_path, "", 0.0)
    assert cli(tmp_path, "environment").out == "results/environment.csv\n"
    rows = pd.read_csv(tmp_path / "results" / "environment.csv")
    assert list(rows["stage"]) == ["sae@tiny-wanda-50", "base@tiny"]  # no figures: they make no number
    assert rows["finished"].str.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ").all()
    assert read(tmp_path / "results" / "environment.csv")["base@tiny"] == {"threads": "3", **describe()}


def test_an_old_log_gives_what_it_has(tmp_path: Path) -> None:
    timeline(tmp_path).parent.mkdir()
    timeline(tmp_path).write_text(OLD)
    assert read(write(tmp_path))["base@mini-llama3"] == {"threads": "2"}


def test_differences_name_field_values_and_stages() -> None:
    there = {name: {"cpu": "A", "torch": "2.13.0", "threads": "1"} for name in ("sae@a", "sae@b", "sae@c")}
    here = {name: {"cpu": "B", "torch": "2.13.0"} for name in there}
    assert differences(there, here, list(there)) == ["cpu: A published, B here (sae@a, sae@b and 1 more)"]
    assert differences(there, there, list(there)) == []


def test_without_a_time_line_the_command_ends_in_one_line(tmp_path: Path, cli: Callable) -> None:
    ended = cli(tmp_path, "environment")
    assert ended.code == 2 and ended.err.startswith("error: artifacts/timeline.csv: no such file")

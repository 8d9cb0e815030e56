"""The whole pipeline through DVC on a miniature grid, by the entry that `make quick` uses, and what DVC then reruns."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from conftest import PROGRAMS
from ruamel.yaml import YAML

from feature_survival.config import load
from feature_survival.summarize.variants import TABLES

ENVIRONMENT = {**os.environ, "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}", "TQDM_DISABLE": "1"}


def program(scratch, *words):
    return subprocess.run(words, cwd=scratch, env=ENVIRONMENT, capture_output=True, text=True)


def digests(folder):
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def stages_run(scratch):
    shown = program(scratch, "dvc", "repro").stdout
    return {line.split("'")[1] for line in shown.splitlines() if line.startswith("Running stage")}


@pytest.fixture(scope="module")
def scratch(miniature, tmp_path_factory):
    return shutil.copytree(miniature, tmp_path_factory.mktemp("end") / "clone", symlinks=True)


def test_the_grid_ends_in_tables_of_both_cells_and_a_figure(scratch):
    cells = pd.read_csv(scratch / "results" / "cells.csv").set_index("condition")
    assert list(cells.index) == ["dense", "wanda-50"]
    assert cells.loc["dense", "achieved_sparsity"] == 0
    assert cells.loc["wanda-50", "achieved_sparsity"] == pytest.approx(0.5, abs=0.01)
    assert cells["perplexity"].between(2, 1024).all() and cells["perplexity"].nunique() == 2
    # After 15 steps an SAE may still be worse than the mean, on a pruned model that varies little.
    assert 0 < cells.loc["dense", "fvu"] < 1 and (cells["fvu"] > 0).all()
    survival = pd.read_csv(scratch / "results" / "survival.csv")
    assert set(survival.loc[survival["condition"] == "wanda-50", "pairing"]) == {
        "same init, same order",
        "same init, other order",
        "other init, other order",
    }
    assert (survival["low"] <= survival["survival"]).all() and (survival["survival"] <= survival["high"]).all()
    assert (scratch / "paper_figures" / "survival.pdf").read_bytes().startswith(b"%PDF")
    assert r"wanda-50" in (scratch / "paper_figures" / "cells.tex").read_text()


def test_the_grid_ends_in_a_report_of_its_features(scratch):
    page = (scratch / "artifacts" / "report" / "index.html").read_text()
    features = json.loads(page.split('id="data-features-nano-llama3">')[1].split("</script>")[0])
    assert list(features["conditions"]) == ["wanda-50"] and features["feature"]
    assert all(len(of["dense"]) + len(of["wanda-50"]) for of in features["contexts"])


def test_a_condition_takes_at_most_a_fifteenth_of_its_checkpoint(scratch):
    weights = (scratch / "artifacts/nano-llama3/base/model.safetensors").stat().st_size  # stored in bfloat16
    written = scratch / "artifacts/nano-llama3/prune/wanda-50"
    assert sum(file.stat().st_size for file in written.iterdir()) <= weights / 15


def test_a_finished_grid_has_nothing_left_to_run(scratch):
    assert stages_run(scratch) == set()


@pytest.mark.parametrize(
    ("command", "folder"),
    [
        ("prune nano-llama3", "nano-llama3/prune"),
        ("cache nano-llama3 wanda-50", "nano-llama3/wanda-50/cache"),
        ("sae nano-llama3 wanda-50", "nano-llama3/wanda-50/sae"),
        ("metrics nano-llama3 wanda-50", "metrics/nano-llama3/wanda-50"),
    ],
)
def test_a_stage_run_again_gives_the_same_bytes(scratch, command, folder):
    folder = scratch / "artifacts" / folder
    first = digests(folder)
    assert first
    assert program(scratch, "feature-survival", *command.split()).returncode == 0
    assert digests(folder) == first


@pytest.mark.parametrize(
    ("folder", "command", "halfway"),
    [
        ("base", ["base", "nano-llama3"], ".base.partial-*"),
        (
            "dense/sae",
            ["sae", "nano-llama3", "dense"],
            ".sae.partial-*/init0-data0/cfg.json",
        ),  # one SAE of five is written
    ],
)
def test_a_killed_stage_leaves_the_old_artifact_and_its_rerun_gives_the_same_bytes(scratch, folder, command, halfway):
    folder = scratch / "artifacts" / "nano-llama3" / folder
    first = digests(folder)
    command = ["feature-survival", *command]
    running = subprocess.Popen(command, cwd=scratch, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(folder.parent.glob(halfway)) and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert list(folder.parent.glob(halfway))
    assert digests(folder) == first
    assert program(scratch, *command).returncode == 0
    assert digests(folder) == first
    assert not list(folder.parent.glob(f".{folder.name}.partial-*"))


def test_a_cell_without_metrics_is_named_and_no_table_is_touched(scratch):
    before = digests(scratch / "results")
    metrics = scratch / "artifacts" / "metrics" / "nano-llama3" / "wanda-50"
    aside = metrics.with_name("aside")
    metrics.rename(aside)
    try:
        done = program(scratch, "feature-survival", "summarize")
        assert done.returncode == 2
        assert "nano-llama3/wanda-50" in done.stderr and len(done.stderr.splitlines()) == 1
        assert digests(scratch / "results") == before
    finally:
        aside.rename(metrics)


@pytest.mark.parametrize(
    "damage",
    [lambda whole: whole[: len(whole) // 2], lambda whole: b"not safetensors at all"],
    ids=["truncated", "foreign"],
)
@pytest.mark.parametrize("artifact", ["base/model.safetensors", "prune/wanda-50/weights.safetensors"])
def test_a_damaged_safetensors_file_is_named_in_one_line(scratch, artifact, damage):
    path: Path = scratch / "artifacts" / "nano-llama3" / artifact
    whole, before = path.read_bytes(), digests(scratch / "artifacts" / "nano-llama3" / "wanda-50" / "cache")
    path.chmod(0o644)
    path.write_bytes(damage(whole))
    try:
        done = program(scratch, "feature-survival", "cache", "nano-llama3", "wanda-50")
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1 and "nano-llama3" in done.stderr
        assert digests(scratch / "artifacts" / "nano-llama3" / "wanda-50" / "cache") == before
    finally:
        path.write_bytes(whole)


@contextmanager
def changed(path: Path, old: str, new: str):
    """A text file in which something is replaced, for a while."""
    whole = path.read_text()
    assert old in whole
    path.write_text(whole.replace(old, new, 1))
    try:
        yield
    finally:
        path.write_text(whole)


def test_what_is_published_is_computed_again_byte_for_byte(scratch):
    before = digests(scratch / "results")
    done = program(scratch, "feature-survival", "verify", "nano-llama3-resid_post")
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    assert {line.split()[0] for line in lines if line.endswith("the published bytes")} == {
        "prune@nano-llama3",
        "variants@nano-llama3-resid_post",
    }
    assert (
        last.startswith("verified: ") and " metrics in 1 place computed again, " in last and "all identical; " in last
    )
    assert digests(scratch / "results") == before and not (scratch / ".verify").exists()


def test_numbers_that_seeds_do_not_explain_are_named_with_what_was_changed(scratch):
    with changed(scratch / "params.yaml", "splice_windows: 16 ", "splice_windows: 8 "):
        assert load(scratch / "params.yaml").metrics.splice_windows == 8
        done = program(scratch, "feature-survival", "verify", "nano-llama3-wanda-50")
    assert done.returncode == 1, done.stdout + done.stderr
    assert sum(line.endswith("the published bytes") for line in done.stdout.splitlines()) == 5  # prune, cache, sae
    assert (
        "metrics.splice_windows is 8, was 16 (metrics@nano-llama3-dense, metrics@nano-llama3-wanda-50)" in done.stdout
    )
    assert "difference: results/cells.csv: model=nano-llama3 condition=wanda-50" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("not verified: ")


def test_an_altered_result_is_found_and_the_number_named(scratch):
    cells = pd.read_csv(scratch / "results" / "cells.csv", dtype=str)
    fvu, perplexity = cells.loc[1, "fvu"], cells.loc[1, "perplexity"]
    with changed(scratch / "results" / "cells.csv", f",{fvu},", ",0.0123,"):
        done = program(scratch, "feature-survival", "verify", "nano-llama3-wanda-50")
    assert done.returncode == 1 and perplexity not in done.stdout
    assert "difference: results/cells.csv: not the bytes that dvc.lock names" in done.stdout
    assert f"condition=wanda-50 series=wanda sparsity=0.5: fvu: published 0.0123, recomputed {fvu}," in done.stdout


def test_an_altered_artifact_is_named_and_an_absent_one_is_to_be_pulled(scratch):
    metrics = scratch / "artifacts" / "metrics" / "nano-llama3" / "wanda-50"
    with changed(metrics / "metrics.json", '"fvu": 0.', '"fvu": 1.'):
        done = program(scratch, "feature-survival", "verify", "nano-llama3-wanda-50")
    assert done.returncode == 1
    assert done.stdout.startswith("difference: artifacts/metrics/nano-llama3/wanda-50: not the bytes that dvc.lock")
    aside = metrics.with_name("aside")
    metrics.rename(aside)
    try:
        done = program(scratch, "feature-survival", "verify", "nano-llama3-wanda-50")
        assert done.returncode == 2 and "wanda-50: not here; dvc pull brings" in done.stderr
    finally:
        aside.rename(metrics)


def test_adding_one_sparsity_reruns_that_column_only(scratch):
    path = scratch / "params.yaml"
    params = YAML().load(path)
    params["study"]["conditions"].append("wanda-30")
    YAML().dump(params, path)
    # All conditions of a model are one stage; those that were there come out as they were, and end their columns.
    column = {f"{stage}@nano-llama3-wanda-30" for stage in ("cache", "sae", "metrics")} | {"prune@nano-llama3"}
    # Not the figure of the dense SAEs' stability, nor those of the second study: their tables are as they were.
    figures = {f"figures@{name}" for name in params["study"]["figures"] if name not in ("stability", *TABLES)}
    assert stages_run(scratch) == column | figures | {"summarize", "tables", "claims", "report"}
    assert stages_run(scratch) == set()

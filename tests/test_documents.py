"""What the documents say is so: every command in them is run, every example is followed, every name they use exists."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from conftest import PROGRAMS, TOP
from documents import DOCUMENTS, blocks, commands, follow, read, spans
from ruamel.yaml import YAML
from test_structure import ORDER
from typer.main import get_command

import feature_survival
from feature_survival.cli import app
from feature_survival.verify.compare import MODELS, SEEDS
from feature_survival.verify.tolerance import FACTORS

# What needs more than a test machine has: a pattern of commands -> the test that stands in for them.
ELSEWHERE = {
    # What takes as long as the whole suite; MADE_BY says that make runs what these tests run.
    r"make test": "test_documents.py::test_a_command_of_the_documents_ends_well",
    r"make reproduce": "test_documents.py::test_a_fresh_clone_reproduces_from_the_store_and_computes_no_stage",
    r"make quick": "test_end_to_end.py::test_the_grid_ends_in_tables_of_both_cells_and_a_figure",
    r"make recompute.*": "test_grid.py::test_missing_outputs_are_computed_where_something_that_changed_needs_them",
    r"make verify.*": "test_end_to_end.py::test_what_is_published_is_computed_again_byte_for_byte",
    r"feature-survival verify --spread.*": "test_documents.py::test_the_spread_between_seeds_is_measured_at_a_place",
    r"make drill": "faults/test_kill.py::test_a_run_killed_at_random_moments_ends_in_the_same_bytes",
    r"make bench": "test_benchmarks.py::test_matching_and_causal_agree_with_their_peers",
    # An example's own.
    r"dvc repro figures@cells|make figure FIG=cells": "test_documents.py::test_the_example_adds_a_figure",
    # A GPU, an engine, a cluster, other machines.
    r"make gpu-check": "test_benchmarks.py::test_the_throughput_benchmark_prints_a_rate_of_every_stage",
    r"pytest -m gpu": "test_gpu.py::test_transfer_is_measured_on_the_gpu_as_on_the_cpu",
    r"docker .*|make docker-check": "test_container.py::test_the_files_as_they_are_pass_every_check_that_reads",
    r"make grid SCHEDULER.*|.*dask worker .*|pip install dask-jobqueue": (
        "test_grid.py::test_a_scheduler_s_workers_have_their_threads_and_stop_when_the_coordinator_is_gone"
    ),
    # The network.
    r"make saebench.*": "test_saebench_agreement.py::test_over_the_same_tokens_every_core_metric_is_sae_benchs",
    r"export AWS_ACCESS_KEY_ID.*": (
        "test_remotes.py::test_what_was_pushed_is_pulled_into_a_fresh_clone_and_nothing_runs"
    ),
}
ALONE = {"make lint", "make pip-audit"}  # .ci/run runs the first, before the tests; the other asks an advisory service
# Targets of make whose own test runs the program: what `make -n` says that they run.
MADE_BY = {
    "make quick": "feature-survival quick",
    "make recompute WORKERS=2": "feature-survival grid --workers 2 --force",
    "make verify": "feature-survival verify",
    "make verify CELLS=mini-llama3-wanda-50": "feature-survival verify mini-llama3-wanda-50",
    "make drill": "FAULT_DRILL=1 python -m pytest tests/faults",
    "make gpu-check": "python -m pytest -m gpu",
    "make docker-check": "python tests/docker_check.py",
    "make bench": "python benchmarks/bench.py",
}
# The default grid's names and those of the reader's own files, as the miniature grid has them.
SMALLER = {
    r"mini-\w+?-(mlp_out|attention)\b": "nano-llama3-resid_post",
    r"\[gpt2\]": "[nano-llama3]",
    r"\bmini-\w+": "nano-llama3",
    r"--base BASE --compressed COMPRESSED --sae SAE --site resid_post.6 --text FILE --out DIR": (
        "--base artifacts/nano-llama3/base --compressed artifacts/nano-llama3/base "
        "--sae artifacts/nano-llama3/dense/sae/init0-data0 --site resid_post.1 --text short.jsonl --out audit"
    ),
    r"STAGE@MODEL-CONDITION": "metrics@nano-llama3-wanda-50",
    r"https://HOST/store": "store",
}


def elsewhere(command: str) -> str | None:
    return next((stands_in for typed, stands_in in ELSEWHERE.items() if re.fullmatch(typed, command)), None)


RUN = [command for command in commands() if not elsewhere(command) and command not in ALONE]


def environment_of(folder: Path) -> dict[str, str]:
    """A folder's own sources and programs, no progress bars."""
    path = f"{folder / '.venv' / 'bin'}{os.pathsep}{PROGRAMS}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(folder / "src"), "TQDM_DISABLE": "1"}


def run(command: str, folder: Path) -> str:
    """What a command says; it must end well."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment_of(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


def with_environment(folder: Path) -> Path:
    """Give a checkout a `.venv` that is this environment, newer than what it is made from."""
    (folder / ".venv").mkdir()
    for entry in Path(sys.prefix).iterdir():
        if entry.name != ".complete":
            (folder / ".venv" / entry.name).symlink_to(entry)
    (folder / ".venv" / ".complete").touch()
    return folder


@pytest.fixture(scope="module")
def checkout(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature grid, committed, its outputs in store/, in an environment."""
    folder = shutil.copytree(miniature, tmp_path_factory.mktemp("documents") / "clone", symlinks=True)
    lines = (folder / "data" / "evaluation.jsonl").read_text().splitlines(keepends=True)
    (folder / "short.jsonl").write_text("".join(lines[:10]))  # a reader's text
    run("dvc push --quiet", folder)
    run("git add --all && git -c user.name=a -c user.email=a@b commit --quiet --message grid", folder)
    return with_environment(folder)


@pytest.mark.parametrize("command", RUN)
def test_a_command_of_the_documents_ends_well(checkout: Path, command: str) -> None:
    for typed, small in SMALLER.items():
        command = re.sub(typed, small, command)
    try:
        run(command, checkout)
    finally:
        (checkout / ".dvc" / "config.local").unlink(missing_ok=True)  # a remote that was added


@pytest.mark.parametrize("typed", ELSEWHERE)
def test_what_is_not_run_here_has_a_test_that_stands_in_for_it(typed: str) -> None:
    assert any(re.fullmatch(typed, command) for command in commands()), f"no document says {typed!r}"
    file, _, function = ELSEWHERE[typed].partition("::")
    assert f"def {function}(" in (TOP / "tests" / file).read_text()


@pytest.mark.parametrize("command", MADE_BY)
def test_make_runs_what_stands_in_for_it(command: str) -> None:
    assert command in commands()
    said = subprocess.run(["bash", "-c", f"{command} --dry-run"], cwd=TOP, capture_output=True, text=True, check=True)
    ran = re.sub(rf"{re.escape(str(TOP))}/\.venv/bin/|[\t ]+$", "", said.stdout, flags=re.MULTILINE)
    assert MADE_BY[command] in [" ".join(line.split()) for line in ran.splitlines()], said.stdout


def test_the_python_of_the_documents_compiles() -> None:
    """The Slurm cluster's: what it imports is not in the lock."""
    (script,) = [block.text for block in blocks("REPRODUCE.md") if block.language == "python"]
    compile(script, "REPRODUCE.md", "exec")


def test_the_spread_between_seeds_is_measured_at_a_place(copy: Path) -> None:
    before = pd.read_csv(copy / "results" / "spread.csv")
    shown = run("feature-survival verify --spread nano-llama3-resid_post", copy)
    assert "results/spread.csv" in shown
    after = pd.read_csv(copy / "results" / "spread.csv")
    assert set(after["between"]) == {SEEDS, MODELS}
    pairs = [table.set_index(["between", "table", "column", "question"])["spread"] for table in (before, after)]
    at_place = pairs[1].loc[SEEDS, "variants_by_site", "fvu"]
    assert (at_place > 0).all() and not at_place.equals(pairs[0].loc[SEEDS, "variants_by_site", "fvu"])


def test_both_commands_of_the_readme_are_targets_of_make() -> None:
    (first,) = [block for block in blocks("README.md") if "make reproduce" in block.text]
    assert "make test" in first.text
    targets = re.findall(r"^([a-z-]+):", (TOP / "Makefile").read_text(), re.MULTILINE)
    for command in commands():
        if command.startswith("make "):
            assert next(word for word in command.split()[1:] if "=" not in word) in targets, command


def test_a_fresh_clone_reproduces_from_the_store_and_computes_no_stage(checkout: Path, tmp_path: Path) -> None:
    run(f"git clone --quiet {checkout} fresh", tmp_path)
    fresh = with_environment(tmp_path / "fresh")
    shown = run("make reproduce", fresh)
    assert "Published claims" in shown
    ran = fresh / "artifacts" / "timeline.csv"
    stages = set(pd.read_csv(ran)["stage"]) if ran.exists() else set()
    assert not {stage for stage in stages if stage.split()[0] != "data"}
    assert not run("git status --porcelain", fresh).replace("?? .venv/\n", "")


def examples(heading: str, root: Path) -> list[Path]:
    """Follow every example under a heading; the files written or changed."""
    found = [block for block in blocks("CONTRIBUTING.md") if block.heading == heading]
    assert found
    for block in found:
        assert len(block.text.splitlines()) < 30
    return [path for block in found for path in follow(block, root)]


@pytest.fixture
def copy(checkout: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkout, tmp_path / "copy", symlinks=True)


def change_params(root: Path, change: Callable[..., None]) -> None:
    params = YAML().load(root / "params.yaml")
    change(params)
    YAML().dump(params, root / "params.yaml")


def lint(root: Path, files: list[Path]) -> None:
    python = " ".join(str(file) for file in files if file.suffix == ".py")
    run(f"ruff check {python} && ruff format --check {python}", root)


def test_the_example_adds_a_model_family(copy: Path) -> None:
    lint(copy, examples("A model family", copy))
    shown = run("python -m pytest tests/test_families.py -k Olmo2", copy)
    assert re.search(r"\d+ passed", shown) and "failed" not in shown


def test_the_example_adds_a_compression_method(copy: Path) -> None:
    lint(copy, examples("A compression method", copy))
    change_params(copy, lambda params: params["study"]["conditions"].append("ria-50"))
    run("feature-survival prune nano-llama3", copy)
    written = json.loads((copy / "artifacts/nano-llama3/prune/ria-50/condition.json").read_text())
    assert written["achieved_sparsity"]["all"] == pytest.approx(0.5, abs=0.01)


def test_the_example_adds_a_metric(copy: Path) -> None:
    lint(copy, examples("A metric", copy))
    run("feature-survival metrics nano-llama3 wanda-50 && dvc repro --single-item summarize", copy)
    evenness = pd.read_csv(copy / "results" / "evenness.csv")
    assert len(evenness) == 5 and evenness["gini"].between(0.05, 0.95).all()
    saes = pd.read_csv(copy / "results" / "saes.csv")
    assert saes.loc[saes["condition"] == "wanda-50", "highest_rate"].between(0, 1).all()


def test_the_example_adds_a_figure(copy: Path) -> None:
    lint(copy, examples("A figure", copy))
    change_params(copy, lambda params: params["study"]["figures"].append("cells"))
    drawn = copy / "paper_figures" / "cells.png"
    for command in ("make figure FIG=cells", "dvc repro figures@cells"):
        drawn.unlink(missing_ok=True)
        run(command, copy)
        assert drawn.read_bytes().startswith(b"\x89PNG")


def test_version_and_date_of_the_release_are_everywhere_the_same() -> None:
    citation = YAML(typ="safe").load(TOP / "CITATION.cff")
    newest = re.search(r"^## (\S+) - (\S+)$", (TOP / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and newest.groups() == (feature_survival.__version__, str(citation["date-released"]))
    assert citation["version"] == feature_survival.__version__


def test_contributing_has_a_paragraph_on_every_module_in_import_order() -> None:
    paragraphs = re.findall(r"^\*\*`(\w+)`\*\* \S", read("CONTRIBUTING.md"), re.MULTILINE)
    assert paragraphs == ORDER


def test_the_tolerances_are_those_that_are_applied() -> None:
    stated = re.findall(r"\b(\d+) times as far as", read("REPRODUCE.md"))
    assert [float(factor) for factor in stated] == [FACTORS[SEEDS], FACTORS[MODELS]]


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_of_a_document_leads_somewhere(document: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", read(document)):
        file, _, anchor = target.partition("#")
        assert (TOP / (file or document)).exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", read(file or document), re.MULTILINE)
            assert anchor in map(slug, headings), target


ROOTS = ["", "src/feature_survival", "results", "paper_figures", "tests"]
FILE = re.compile(r"[\w.{},/-]+\.(?:py|csv|md|json|yaml|yml|lock|png|pdf|tex|toml|dvc|cff)")
# Made by a command, or an example's own.
MADE = r"artifacts/.*|.*(features|matches)\.parquet|DIR/.*|audit\.(html|json)|one\.csv|other\.csv|\.\w+/.*"


def braces(path: str) -> list[str]:
    """`a/{b,c}.py` -> `a/b.py`, `a/c.py`."""
    parts = [part.split(",") if number % 2 else [part] for number, part in enumerate(re.split(r"[{}]", path))]
    return ["".join(chosen) for chosen in product(*parts)]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_a_document_names_exists(document: str) -> None:
    named = [path for span in spans(document) for word in span.split() if FILE.fullmatch(word) for path in braces(word)]
    assert named
    absent = [path for path in named if not any((TOP / root / path).exists() for root in ROOTS)]
    assert not [path for path in absent if not re.fullmatch(MADE, path)]


def test_every_option_of_ours_that_a_document_names_exists() -> None:
    known = {option for command in get_command(app).commands.values() for one in command.params for option in one.opts}
    ours = [span for document in DOCUMENTS for span in spans(document) if re.match(r"--|feature-survival ", span)]
    ours += [command for command in commands() if "feature-survival " in command and not command.startswith("docker")]
    foreign = {"--local", "--user", "--gpus", "--nthreads", "--allow-missing", "--help"}  # dvc's, docker's, dask's
    named = {option for text in ours for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", text)}
    assert named and not named - known - foreign

"""The command line: bad input ends in one line on standard error, exit code 2, nothing written."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_STUDY, TOP, Ended, WriteParams, assert_refused, contents, truncate
from safetensors.torch import load_file, save_file

Cli = Callable[..., Ended]
STAGES = ["data", "base", "prune", "cache", "sae", "metrics", "summarize", "figure", "tables", "claims"]
LATER = ["contexts", "release", "report"]
AROUND = ["check", "plan", "verdicts", "pull", "audit", "grid", "timeline", "quick", "verify", "environment"]
COMMANDS = [*STAGES, *LATER, *AROUND]


def test_every_condition_of_the_catalogue_fits_every_model_of_it(
    tmp_path: Path, write_params: WriteParams, shipped: dict[str, Any], cli: Cli
) -> None:
    everything = {"study.bases": list(shipped["models"]), "variants.compressors": list(shipped["conditions"])}
    write_params(tmp_path, {**everything, "prune.quantization_group": 16})  # 32 does not divide nano-llama3's 176
    shutil.copy(TOP / "claims.yaml", tmp_path)
    ended = cli(tmp_path, "check")
    assert (ended.code, ended.err) == (0, "")


def test_what_make_quick_runs_passes_the_check(
    tmp_path: Path, write_params: WriteParams, shipped: dict[str, Any], cli: Cli
) -> None:
    write_params(tmp_path, shipped["quick"])
    shutil.copy(TOP / "claims.yaml", tmp_path)
    ended = cli(tmp_path, "check")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("params.yaml: 1 models x 3 conditions = 3 cells")


def test_the_shipped_params_pass_the_check(cli: Cli, tmp_path: Path, write_params: WriteParams) -> None:
    write_params(tmp_path, {})
    shutil.copy(TOP / "claims.yaml", tmp_path)
    ended = cli(tmp_path, "check")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("params.yaml: 3 models x 11 conditions = 33 cells; variants: 3 models x 3 sites; ")


def base(project: Path, name: str) -> Path:
    return project / "artifacts" / "tiny" / "base" / name


Damage = Callable[[Path], object]
REFUSED: list[tuple[str, Damage, str]] = [
    ("prune tin", lambda _: None, "model: unknown name 'tin'; did you mean 'tiny'?"),
    ("cache tiny wand-50", lambda _: None, "condition: unknown name 'wand-50'; did you mean 'wanda-50'?"),
    ("cache tin dense", lambda _: None, "model: unknown name 'tin'; did you mean 'tiny'?"),
    ("base tin", lambda _: None, "model: unknown name 'tin'"),
    ("figure survivl", lambda _: None, "figure: unknown name 'survivl'; did you mean 'survival'?"),
    ("figure survival", lambda _: None, "results/survival.csv: no such file"),
    ("tables", lambda _: None, "results/models.csv: no such file"),
    ("claims", lambda _: None, "claims.yaml: no such file"),
    ("report", lambda _: None, "results/claims.json: no such file"),
    ("contexts tiny wanda-50", lambda _: None, "metrics/tiny/dense/features.parquet: no such file"),
    ("summarize", lambda _: None, "3 of 3 cells have no metrics: tiny/dense, tiny/magnitude-50, tiny/wanda-50"),
    ("check", lambda top: (top / "params.yaml").unlink(), "params.yaml: no such file"),
    ("base tiny", lambda top: (top / "data/lm.jsonl").unlink(), "data/lm.jsonl: no such file; run: make data"),
    ("base tiny", lambda top: (top / "data/calibration.jsonl").write_text(""), "split 'calibration' of data holds 0"),
    ("prune tiny", lambda top: truncate(base(top, "model.safetensors")), "not a loadable checkpoint"),
    ("prune tiny", lambda top: base(top, "config.json").unlink(), "base/config.json: no such file"),
    ("prune tiny", lambda top: base(top, "tokenizer.json").unlink(), "base/tokenizer.json"),
    ("prune tiny", lambda top: truncate(base(top, "tokenizer.json")), "base/tokenizer.json"),
    ("prune tiny", lambda top: (top / "data/calibration.jsonl").unlink(), "data/calibration.jsonl: no such file"),
    ("cache tiny dense", lambda top: base(top, "tokenizer.json").unlink(), "base/tokenizer.json"),
    ("cache tiny dense", lambda _: None, "artifacts/tiny/prune/dense/weights.safetensors: no such file"),
    ("metrics tiny dense", lambda _: None, "dense/cache: no evaluation shards; run the cache stage"),
    ("sae tiny dense", lambda _: None, "dense/cache: no sae shards; run the cache stage"),
]


@pytest.mark.parametrize(("command", "damage", "message"), REFUSED)
def test_a_stage_without_its_input_is_refused_and_writes_no_file(
    project: Path, cli: Cli, command: str, damage: Damage, message: str
) -> None:
    damage(project)
    before = contents(project)
    assert_refused(cli(project, *command.split()), message)
    assert contents(project) == before


def run_up_to(cli: Cli, project: Path, last: str) -> None:
    """Run the stages of the dense cell in their order, `last` among them."""
    for command in ("prune tiny", "cache tiny dense", "sae tiny dense"):
        assert cli(project, *command.split()).code == 0
        if command.startswith(last):
            return


def test_a_dense_sae_of_which_no_feature_is_alive_is_named(project: Path, cli: Cli) -> None:
    run_up_to(cli, project, "sae")
    weights = project / "artifacts" / "tiny" / "dense" / "sae" / "init0-data0" / "sae_weights.safetensors"
    silent = load_file(weights)
    silent["b_enc"] -= 1e6
    save_file(silent, weights)
    assert_refused(cli(project, "metrics", "tiny", "dense"), "no feature of tiny/dense's SAE init0-data0 is alive")
    assert not (project / "artifacts" / "metrics").exists()


TOO_MUCH: list[tuple[str, str, Any, str]] = [
    ("prune tiny", "prune.calibration_windows", 10**6, "split 'calibration' of data holds"),
    ("cache tiny dense", "activations.sae_windows", 10**6, "split 'sae' of data holds"),
    ("cache tiny dense", "activations.evaluation_windows", 10**6, "1000000 were asked for"),
    ("sae tiny dense", "sae.batch_tokens", 10**6, "sae.batch_tokens: 1000000 asked, the sae split has 600 tokens"),
    ("sae tiny dense", "sae.k", 10**6, "sae.k"),
    ("sae tiny dense", "sae.learning_rate", 1e30, "stage sae: "),
    ("sae tiny dense", "sae.expansion", 10**10, "stage sae: out of memory on cpu; lower sae.batch_tokens or sae.expan"),
    ("prune tiny", "device", "cuda:7", "device: 'cuda:7' asked, this machine has no CUDA device; allowed: auto, cpu"),
    ("base tiny", "models.tiny.weights.training.learning_rate", 1e38, "loss is nan at step"),
    ("base tiny", "models.tiny.architecture", "BloomForCausalLM", "architecture 'BloomForCausalLM' has no adapter"),
    ("cache tiny dense", "models.tiny.sites.resid_post", "resid_post.3", "'resid_post.3' is beyond the last block"),
]


@pytest.mark.parametrize(("command", "key", "value", "message"), TOO_MUCH)
def test_settings_that_cannot_be_met_are_refused_and_write_no_file(
    project: Path, write_params: WriteParams, cli: Cli, command: str, key: str, value: Any, message: str
) -> None:
    run_up_to(cli, project, "cache" if command.startswith("sae") else "prune")
    write_params(project, {**TINY_STUDY, key: value})
    before = contents(project)
    assert_refused(cli(project, *command.split()), message)
    assert contents(project) == before


def test_a_condition_that_does_not_fit_is_refused_before_any_computing(
    project: Path, write_params: WriteParams, cli: Cli
) -> None:
    """Before the calibration text is looked for, and before conditions that fit are computed."""
    write_params(project, {**TINY_STUDY, "conditions.rtn-4.quantization_group": 20})
    (project / "data" / "calibration.jsonl").unlink()
    before = contents(project)
    message = "conditions.rtn-4 on tiny: quantization_group 20 does not divide a row of 32; nearest: 16 (0.self_attn.q_"
    assert_refused(cli(project, "prune", "tiny"), message)
    assert contents(project) == before


def run_apart(folder: Path, *arguments: str) -> Ended:
    """In a process of its own, where the loggers of libraries reach standard error too."""
    program = Path(sys.executable).with_name("feature-survival")
    ended = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def test_a_foreign_checkpoint_is_refused_in_one_line_with_no_report_of_a_library(project: Path) -> None:
    save_file({"x": torch.ones(3)}, base(project, "model.safetensors"), metadata={"format": "pt"})
    assert_refused(run_apart(project, "prune", "tiny"), "tensors of LlamaForCausalLM")


def test_a_stage_that_succeeds_is_silent_and_leaves_only_its_artifact_and_its_time(project: Path) -> None:
    before = contents(project)
    assert run_apart(project, "prune", "tiny") == (0, "", "")
    added = contents(project).keys() - before.keys()
    conditions = ("dense", "magnitude-50", "wanda-50", "rtn-4")  # of both studies
    files = ("weights.safetensors", "condition.json")
    expected = {f"artifacts/tiny/prune/{condition}/{file}" for condition in conditions for file in files}
    assert added == {*expected, "artifacts/tiny/prune/variants.json", "artifacts/timeline.csv"}


def test_quick_refuses_a_folder_that_is_no_scratch_clone_of_its_own(cli: Cli, tmp_path: Path) -> None:
    """`into` is made anew: a folder with other things in it must not be."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    ended = cli(TOP, "quick", str(precious))
    assert ended.code == 2 and "holds other things than a scratch clone" in ended.err
    assert (precious / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("override", "part"),
    [("no.k=1", "unknown name 'no'"), ("window", "key.path=value"), ("window=[", "not YAML"), ("window.x=1", "window"),
     ("window=1", "window")],
)  # fmt: skip
def test_quick_refuses_a_wrong_override_and_makes_no_clone(cli: Cli, tmp_path: Path, override: str, part: str) -> None:
    ended = cli(TOP, "quick", str(tmp_path / "clone"), "--set", override)
    assert ended.code == 2 and part in ended.err and len(ended.err.splitlines()) == 1
    assert not (tmp_path / "clone").exists()


def test_help_lists_every_subcommand(cli: Cli, tmp_path: Path) -> None:
    ended = cli(tmp_path, "--help")
    assert ended.code == 0
    for command in COMMANDS:
        assert f" {command} " in ended.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_subcommand_explains_itself(cli: Cli, tmp_path: Path, command: str) -> None:
    ended = cli(tmp_path, command, "--help")
    assert ended.code == 0
    assert "Usage" in ended.out


@pytest.mark.parametrize(
    "statement",
    [
        "sys.argv = ['feature-survival', '--help']; feature_survival.cli.main()",
        "import feature_survival.figures, feature_survival.tables, feature_survival.claims",
        "import feature_survival.figures.survival",
        "import feature_survival.summarize",
    ],
)
def test_help_and_figures_import_no_torch(statement: str) -> None:
    code = (
        "import atexit, sys, feature_survival.cli\n"
        "heavy = ('torch', 'transformers', 'sae_lens')\n"
        "atexit.register(lambda: print('loaded:', *[name for name in heavy if name in sys.modules]))\n" + statement
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1].strip() == "loaded:"

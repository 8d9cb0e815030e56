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
from conftest import TINY_STUDY, TOP, Ended, WriteParams, contents, truncate
from safetensors.torch import load_file, save_file

Cli = Callable[..., Ended]
STAGES = ["data", "base", "prune", "cache", "sae", "metrics", "summarize", "figure", "tables", "claims"]
COMMANDS = ["check", *STAGES, "verdicts", "quick"]


def assert_refused(ended: Ended, message: str) -> None:
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert message in ended.err
    assert ended.err.count("\n") == 1
    assert ended.out == ""


BAD_PARAMS: list[tuple[str, Any, str]] = [
    ("saes", {}, "params.yaml: saes: unknown key 'saes'; did you mean 'sae'?"),
    ("sae.expnsion", 8, "sae.expnsion: unknown key 'expnsion'; did you mean 'expansion'?"),
    ("study.model", ["nano-llama3"], "study.model: unknown key 'model'; did you mean 'models'?"),
    ("corpus.shares.lmm", 0.1, "corpus.shares.lmm: unknown key 'lmm'; did you mean 'lm'?"),
    ("conditions.wanda-50.sparsty", 0.5, "unknown key 'sparsty'; did you mean 'sparsity'?"),
    ("models.mini-llama3.sites", "x", "unknown key 'sites'; did you mean 'site'?"),
    ("models.mini-llama3.training.seeds", 0, "unknown key 'seeds'; did you mean 'seed'?"),
    ("conditions.wanda-50.sparsity", 1.0, "conditions.wanda-50.sparsity: input should be less than 1, found 1.0"),
    ("conditions.wanda-50.sparsity", -0.1, "sparsity: input should be greater than or equal to 0, found -0.1"),
    ("conditions.wanda-50.sparsity", 50, "sparsity: input should be less than 1, found 50"),
    ("conditions.wanda-50.sparsity", float("nan"), "conditions.wanda-50.sparsity: input should be"),
    ("conditions.dense.sparsity", 0.5, "conditions.dense: method dense takes no sparsity, found 0.5"),
    ("conditions.wanda-50.method", "wand", "method: input should be 'dense', 'magnitude' or 'wanda', found 'wand'"),
    ("conditions.wanda-50.group", "column", "group: input should be 'row', 'matrix' or 'model', found 'column'"),
    ("prune.group", "model", "conditions.wanda-20: group 'model' needs every block's scores at once"),
    ("study.models", ["mini-lama3"], "study.models: unknown name 'mini-lama3'; did you mean 'mini-llama3'?"),
    ("study.models", ["mini-llama3", "mini-llama3"], "study.models: a name stands twice"),
    ("study.models", [], "study.models: list should have at least 1 item"),
    ("study.conditions", ["dense", "wnda-50"], "unknown name 'wnda-50'; did you mean 'wanda-50'?"),
    ("study.conditions", ["wanda-50"], "study.conditions: 'dense' is missing"),
    ("models.mini-llama3.site", "resid.2", "models.mini-llama3: site 'resid.2' is not one of resid_post.L"),
    ("models.mini-llama3.site", "mlp_out.4", "site 'mlp_out.4' is beyond the last block; allowed: mlp_out.0 to .3"),
    ("corpus.shares.lm", 0.5, "corpus.shares: the four shares sum to 0.8, not to 1"),
    ("seeds.dense", [[0, 0], [0, 0]], "seeds: dense: the same [init, data] pair stands twice"),
    ("seeds.dense", [[0]], "seeds.dense.0"),
    ("seeds.compressed", [[7, 7]], "seeds: compressed: [7, 7] has no dense SAE of the same seeds"),
    ("conditions.wanda-50", {"method": "wanda"}, "conditions.wanda-50: sparsity is missing"),
    ("metrics.taus", [0.6, 0.8], "metrics: taus: 0.7 must be among them"),
    ("metrics.splice_windows", 10_000, "metrics.splice_windows: 10000 asked, activations.evaluation_windows has"),
    ("window", 256, "window: 256 is longer than the 128 positions of model mini-gemma3"),
    ("sae.learning_rate", float("inf"), "sae.learning_rate: input should be a finite number"),
    ("study.figures", ["survivl"], "study.figures: unknown name 'survivl'; did you mean 'survival'?"),
    ("metrics.taus", [0.7, 1.5], "metrics.taus.1: input should be less than 1, found 1.5"),
    ("sae.k", 0, "sae.k: input should be greater than 0, found 0"),
    ("sae.k", "many", "sae.k: input should be a valid integer"),
    ("window", 2, "window: input should be greater than or equal to 3, found 2"),
    ("metrics.taus", [0.7, 0.7], "metrics: taus: one stands twice"),
    ("metrics.causal_features", 4, "metrics.causal_features: input should be greater than or equal to 5, found 4"),
    ("metrics", {}, "metrics.taus: this key is missing (and 5 more)"),
]


@pytest.mark.parametrize(
    ("key", "value", "message"), BAD_PARAMS, ids=[f"{key}={value}" for key, value, _ in BAD_PARAMS]
)
def test_a_bad_value_in_params_is_refused_by_key_finding_and_what_is_allowed(
    tmp_path: Path, write_params: WriteParams, cli: Cli, key: str, value: Any, message: str
) -> None:
    write_params(tmp_path, {key: value})
    assert_refused(cli(tmp_path, "check"), message)
    assert contents(tmp_path).keys() == {"params.yaml"}


def test_the_shipped_params_pass_the_check(cli: Cli, tmp_path: Path, write_params: WriteParams) -> None:
    write_params(tmp_path, {})
    shutil.copy(TOP / "claims.yaml", tmp_path)
    ended = cli(tmp_path, "check")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("params.yaml: 3 models x 11 conditions = 33 cells; claims.yaml:")


def base(project: Path, name: str) -> Path:
    return project / "artifacts" / "tiny" / "base" / name


Damage = Callable[[Path], object]
REFUSED: list[tuple[str, Damage, str]] = [
    ("prune tiny wand-50", lambda _: None, "condition: unknown name 'wand-50'; did you mean 'wanda-50'?"),
    ("cache tin dense", lambda _: None, "model: unknown name 'tin'; did you mean 'tiny'?"),
    ("base tin", lambda _: None, "model: unknown name 'tin'"),
    ("figure survivl", lambda _: None, "figure: unknown name 'survivl'; did you mean 'survival'?"),
    ("figure survival", lambda _: None, "results/survival.csv: no such file"),
    ("tables", lambda _: None, "results/models.csv: no such file"),
    ("claims", lambda _: None, "claims.yaml: no such file"),
    ("summarize", lambda _: None, "3 of 3 cells have no metrics: tiny/dense, tiny/magnitude-50, tiny/wanda-50"),
    ("check", lambda top: (top / "params.yaml").unlink(), "params.yaml: no such file"),
    ("base tiny", lambda top: (top / "data/lm.jsonl").unlink(), "data/lm.jsonl: no such file; run: make data"),
    ("base tiny", lambda top: (top / "data/calibration.jsonl").write_text(""), "split 'calibration' of data holds 0"),
    ("prune tiny magnitude-50", lambda top: truncate(base(top, "model.safetensors")), "not a loadable checkpoint"),
    ("prune tiny magnitude-50", lambda top: base(top, "config.json").unlink(), "base/config.json: no such file"),
    ("prune tiny wanda-50", lambda top: base(top, "tokenizer.json").unlink(), "base/tokenizer.json"),
    ("prune tiny wanda-50", lambda top: truncate(base(top, "tokenizer.json")), "base/tokenizer.json"),
    ("cache tiny dense", lambda top: base(top, "tokenizer.json").unlink(), "base/tokenizer.json"),
    ("cache tiny dense", lambda _: None, "dense/prune/masks.safetensors: no such file"),
    ("metrics tiny dense", lambda _: None, "no such file"),
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


def test_a_dense_sae_of_which_no_feature_is_alive_is_named(project: Path, cli: Cli) -> None:
    for stage in ("prune", "cache", "sae"):
        assert cli(project, stage, "tiny", "dense").code == 0
    weights = project / "artifacts" / "tiny" / "dense" / "sae" / "init0-data0" / "sae_weights.safetensors"
    silent = load_file(weights)
    silent["b_enc"] -= 1e6
    save_file(silent, weights)
    assert_refused(cli(project, "metrics", "tiny", "dense"), "no feature of tiny/dense's SAE init0-data0 is alive")
    assert not (project / "artifacts" / "metrics").exists()


TOO_MUCH: list[tuple[str, str, Any, str]] = [
    ("prune tiny wanda-50", "prune.calibration_windows", 10**6, "split 'calibration' of data holds"),
    ("cache tiny dense", "activations.sae_windows", 10**6, "split 'sae' of data holds"),
    ("cache tiny dense", "activations.evaluation_windows", 10**6, "1000000 were asked for"),
    ("sae tiny dense", "sae.batch_tokens", 10**6, "sae.batch_tokens: 1000000 asked, the sae split has 600 tokens"),
    ("sae tiny dense", "sae.k", 10**6, "sae.k"),
    ("sae tiny dense", "sae.learning_rate", 1e30, "stage sae: "),
    ("base tiny", "models.tiny.training.learning_rate", 1e38, "loss is nan at step"),
    ("base tiny", "models.tiny.architecture", "MistralForCausalLM", "architecture 'MistralForCausalLM' has no adapter"),
    ("cache tiny dense", "models.tiny.site", "resid_post.3", "site 'resid_post.3' is beyond the last block"),
]


@pytest.mark.parametrize(("command", "key", "value", "message"), TOO_MUCH)
def test_settings_that_cannot_be_met_are_refused_and_write_no_file(
    project: Path, write_params: WriteParams, cli: Cli, command: str, key: str, value: Any, message: str
) -> None:
    for needed in ("prune", "cache") if command.startswith("sae") else ("prune",):
        assert cli(project, needed, "tiny", "dense").code == 0
    write_params(project, {**TINY_STUDY, key: value})
    before = contents(project)
    assert_refused(cli(project, *command.split()), message)
    assert contents(project) == before


def run_apart(folder: Path, *arguments: str) -> Ended:
    """In a process of its own, where the loggers of libraries reach standard error too."""
    program = Path(sys.executable).with_name("feature-survival")
    ended = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def test_a_foreign_checkpoint_is_refused_in_one_line_with_no_report_of_a_library(project: Path) -> None:
    save_file({"x": torch.ones(3)}, base(project, "model.safetensors"), metadata={"format": "pt"})
    assert_refused(run_apart(project, "prune", "tiny", "magnitude-50"), "tensors of LlamaForCausalLM")


def test_a_stage_that_succeeds_is_silent_and_leaves_only_its_artifact(project: Path) -> None:
    before = contents(project)
    assert run_apart(project, "prune", "tiny", "wanda-50") == (0, "", "")
    added = contents(project).keys() - before.keys()
    assert added == {f"artifacts/tiny/wanda-50/prune/{name}" for name in ("masks.safetensors", "sparsity.json")}


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
    [("no.such.key=1", "no such key"), ("window", "key.path=value"), ("window=[", "not YAML"), ("window.x=1", "window"),
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

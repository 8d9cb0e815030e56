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
LATER = ["contexts", "release", "report"]
AROUND = ["check", "plan", "verdicts", "pull", "audit", "grid", "timeline", "quick", "verify", "environment"]
COMMANDS = [*STAGES, *LATER, *AROUND]


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
    ("models.mini-llama3.site", "x", "unknown key 'site'; did you mean 'sites'?"),
    ("variants.redundancy.narrow.expnsion", 2, "unknown key 'expnsion'; did you mean 'expansion'?"),
    ("models.mini-llama3.weights.training.seeds", 0, "unknown key 'seeds'; did you mean 'seed'?"),
    ("study.models", ["gpt2"], "study.models: 'gpt2' is used and not among study.bases; add it there"),
    ("models.gpt2.weights.hub.text.sae.revision", None, "revision is missing; HuggingFaceFW/fineweb-edu is no folder"),
    ("models.gpt2.weights", {}, "models.gpt2.weights: either training or hub is needed, found neither"),
    (
        "models.gpt2.weights.hub.revision",
        "main",
        "hub.revision: a commit of 40 hexadecimal digits is needed, as a branch moves; found 'main'",
    ),
    ("models.gpt2.weights.hub.revison", "main", "unknown key 'revison'; did you mean 'revision'?"),
    ("models.gpt2.weights.hub.text.sae.documents", 0, "text.sae.documents: input should be greater than 0, found 0"),
    ("models.gpt2.weights.hub.saes", {"resid": {"release": "a", "sae_id": "b"}}, "saes: unknown name 'resid'"),
    ("models.gpt2.dtype", "fp16", "models.gpt2.dtype: input should be 'auto', 'float32', 'bfloat16' or 'float16'"),
    ("models.gpt2.budget", {"study.site": "x"}, "models.gpt2: budget: 'study.site' is not of a section it may change"),
    ("models.mini-llama3.budget", {"prune.batch": 1}, "models.mini-llama3.budget: prune.batch: unknown key 'batch'"),
    ("models.mini-llama3.budget", {"sae.k": 0}, "models.mini-llama3.budget: sae.k: input should be greater than 0"),
    ("models.mini-llama3.budget", {"window": 512}, "window: 512 is longer than the 128 positions of model mini-llama3"),
    ("device", "gpu", "device: 'gpu' is no device; allowed: auto, cpu, cuda, cuda:N"),
    ("prune.hidden_states", "disk", "prune.hidden_states: input should be 'device' or 'host', found 'disk'"),
    ("metrics.perplexity.stride", 1024, "metrics.perplexity: stride: 1024 leaves gaps between windows of 1024 tokens"),
    ("conditions.wanda-50.sparsity", 1.0, "conditions.wanda-50.sparsity: input should be less than 1, found 1.0"),
    ("conditions.wanda-50.sparsity", -0.1, "sparsity: input should be greater than or equal to 0, found -0.1"),
    ("conditions.wanda-50.sparsity", 50, "sparsity: input should be less than 1, found 50"),
    ("conditions.wanda-50.sparsity", float("nan"), "conditions.wanda-50.sparsity: input should be"),
    ("conditions.dense.sparsity", 0.5, "conditions.dense: method dense takes no sparsity, found 0.5"),
    ("conditions.wanda-50.method", "wand", "conditions.wanda-50: method: unknown name 'wand'; did you mean 'wanda'?"),
    ("conditions.wanda-50.bits", 4, "method wanda takes no bits, found 4; allowed: group, sparsity"),
    ("conditions.wanda-50.rank", 4, "method wanda takes no rank, found 4; allowed: group, sparsity"),
    ("conditions.rtn-4.sparsity", 0.5, "rtn takes no sparsity, found 0.5; allowed: bits, quantization_group"),
    ("conditions.rtn-4.group", "row", "rtn takes no group, found row; allowed: bits, quantization_group"),
    ("conditions.rtn-4", {"method": "rtn"}, "conditions.rtn-4: bits is missing; method rtn needs 2 to 8"),
    ("conditions.rtn-4.bits", 9, "conditions.rtn-4.bits: input should be less than or equal to 8, found 9"),
    ("conditions.rtn-4.bits", 1, "conditions.rtn-4.bits: input should be greater than or equal to 2, found 1"),
    ("conditions.rtn-4.quantization_group", 0, "quantization_group: input should be greater than 0, found 0"),
    ("conditions.svd-50.rank", 8, "method svd takes either sparsity or rank, found ['rank', 'sparsity']"),
    ("conditions.svd-50", {"method": "svd"}, "method svd takes either sparsity or rank, found neither"),
    ("conditions.svd-50", {"method": "svd", "rank": 0}, "conditions.svd-50.rank: input should be greater than 0"),
    ("conditions.svd-50.bits", 4, "method svd takes no bits, found 4; allowed: rank, sparsity"),
    ("conditions.dense.bits", 4, "conditions.dense: method dense takes no bits, found 4; allowed: no setting"),
    ("conditions.wanda-50.group", "column", "group: group 'column' is not one of row, matrix, model or a pattern N:M"),
    ("conditions.wanda-2of4.group", "4:2", "conditions.wanda-2of4.group: group '4:2' is not one of row, matrix, model"),
    ("conditions.wanda-2of4.group", "4:4", "or a pattern N:M with N < M, e.g. 2:4"),
    ("conditions.wanda-2of4.sparsity", 0.5, "group 2:4 says which share goes; leave sparsity 0.5 out"),
    ("conditions.wanda-2of4.group", "row", "conditions.wanda-2of4: sparsity is missing; method wanda needs one"),
    ("conditions.sparsegpt-50.group", "model", "sparsegpt-50: method sparsegpt takes group row, matrix or N:M, found"),
    ("prune.group", "2:4", "prune.group: input should be 'row', 'matrix' or 'model', found '2:4'"),
    ("prune.group", "model", "conditions.wanda-20: group 'model' needs every block's scores at once"),
    ("study.models", ["mini-lama3"], "study.models: unknown name 'mini-lama3'; did you mean 'mini-llama3'?"),
    ("study.models", ["mini-llama3", "mini-llama3"], "study.models: a name stands twice"),
    ("study.models", [], "study.models: list should have at least 1 item"),
    ("study.conditions", ["dense", "wnda-50"], "unknown name 'wnda-50'; did you mean 'wanda-50'?"),
    ("study.conditions", ["wanda-50"], "study.conditions: 'dense' is missing"),
    ("study.models", ["nano-llama3"], "study.models: 'nano-llama3' is used and not among study.bases; add it there"),
    ("study.bases", ["mini-lama3"], "study.bases: unknown name 'mini-lama3'; did you mean 'mini-llama3'?"),
    ("study.bases", ["mini-llama3", "mini-llama3"], "study.bases: a name stands twice"),
    ("study.bases", ["mini-gemma3"], "study.models: 'mini-gemma2' is used and not among study.bases; add it there"),
    ("study.site", "resid_pst", "study.site of mini-gemma3: unknown name 'resid_pst'; did you mean 'resid_post'?"),
    ("variants.models", ["mini-gpt3"], "variants.models: unknown name 'mini-gpt3'; did you mean 'mini-gpt2'?"),
    ("variants.models", ["nano-llama3"], "variants.models: 'nano-llama3' is used and not among study.bases"),
    ("variants.sites", ["atention"], "variants.sites of mini-gpt2: unknown name 'atention'; did you mean 'attention'?"),
    ("variants.sites", ["mlp_out", "mlp_out"], "variants.sites: a name stands twice"),
    ("variants.sites", [], "variants.sites: list should have at least 1 item"),
    ("variants.condition", "wnda-50", "variants.condition: unknown name 'wnda-50'; did you mean 'wanda-50'?"),
    ("variants.further_conditions", ["rtn3"], "further_conditions: unknown name 'rtn3'; did you mean 'rtn-3'?"),
    ("variants.compressors", ["svd"], "variants.compressors: unknown name 'svd'; did you mean 'svd-50'?"),
    ("variants.levels", [0.5, 1.2], "variants.levels.1: input should be less than 1, found 1.2"),
    ("variants.levels", [], "variants.levels: list should have at least 1 item"),
    ("variants.group", "model", "group: an SAE's weights are compared within row, matrix or N:M, found model"),
    ("variants.group", "4:2", "variants.group: group '4:2' is not one of row, matrix, model or a pattern N:M"),
    ("variants.seeds", [[0, 0], [0, 0]], "variants: seeds: the same [init, data] pair stands twice"),
    ("variants.probe_windows", 10**4, "variants: probe_windows: 10000 asked, evaluation_windows has"),
    ("variants.splice_windows", 10**4, "variants: splice_windows: 10000 asked, evaluation_windows has"),
    ("report.conditions", ["wnda-50"], "report.conditions: unknown name 'wnda-50'; did you mean 'wanda-50'?"),
    ("report.conditions", ["rtn-3"], "report.conditions: 'rtn-3' is not among study.conditions; allowed: one that is"),
    ("report.conditions", [], "report.conditions: list should have at least 1 item"),
    ("release.conditions", ["wnda-50"], "release.conditions: unknown name 'wnda-50'; did you mean 'wanda-50'?"),
    (
        "release.conditions",
        ["rtn-3"],
        "release.conditions: 'rtn-3' is not among study.conditions; allowed: one that is",
    ),
    ("report.features", 0, "report.features: input should be greater than 0, found 0"),
    ("models.mini-llama3.sites.mlp_out", "resid.2", "models.mini-llama3: site 'resid.2' is not one of resid_post.L"),
    ("models.mini-llama3.sites.mlp_out", "mlp_out.4", "'mlp_out.4' is beyond the last block; allowed: mlp_out.0 to .3"),
    ("models.mini-llama3.sites", {}, "models.mini-llama3.sites: dictionary should have at least 1 item"),
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
    ("metrics", {}, "metrics.taus: this key is missing (and 6 more)"),
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


MISFITS: list[tuple[str, Any, str]] = [
    (
        "conditions.wanda-2of4.group",
        "2:5",
        "conditions.wanda-2of4 on mini-gemma3: pattern 2:5 does not divide a row of 128; nearest: 2:4 "
        "(0.self_attn.q_proj, 128 x 128)",
    ),
    (
        "prune.quantization_group",
        96,
        "conditions.rtn-3 on mini-gemma3: quantization_group 96 does not divide a row of 128; nearest: 64 "
        "(0.self_attn.q_proj, 128 x 128)",
    ),
    (
        "conditions.awq-4.quantization_group",
        128,
        "conditions.awq-4 on mini-gemma3: quantization_group 128 does not divide a row of 352; nearest: 88 "
        "(0.mlp.down_proj, 128 x 352)",
    ),
    (
        "conditions.svd-50",
        {"method": "svd", "rank": 100},
        "conditions.svd-50 on mini-gemma3: rank 100 is above the matrix's; nearest: 64 (0.self_attn.k_proj, 64 x 128)",
    ),
    (
        "conditions.activation-svd-50.sparsity",
        0.98,
        "conditions.activation-svd-50 on mini-gemma3: sparsity 0.98 leaves no rank; nearest: 0.976 "
        "(0.self_attn.k_proj, 64 x 128)",
    ),
]


@pytest.mark.parametrize(("key", "value", "message"), MISFITS, ids=[f"{key}={value}" for key, value, _ in MISFITS])
def test_a_condition_that_fits_not_every_matrix_is_refused_with_the_nearest_value_that_does(
    tmp_path: Path, write_params: WriteParams, cli: Cli, key: str, value: Any, message: str
) -> None:
    write_params(tmp_path, {key: value})
    assert_refused(cli(tmp_path, "check"), f"error: params.yaml: {message}\n")
    assert contents(tmp_path).keys() == {"params.yaml"}


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

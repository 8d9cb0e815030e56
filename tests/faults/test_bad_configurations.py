"""Bad configurations, each with its one line: the key, what was found, what is allowed; and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Ended, WriteParams, assert_refused, contents
from pipeline import run

from .conftest import Tried

Cli = Callable[..., Ended]


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
    tmp_path: Path, write_params: WriteParams, cli: Cli, tried: Tried, key: str, value: Any, message: str
) -> None:
    write_params(tmp_path, {key: value})
    assert_refused(cli(tmp_path, "check"), message)
    assert contents(tmp_path).keys() == {"params.yaml"}
    tried("bad configurations", 1, "one line: key, found, allowed")


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
    tmp_path: Path, write_params: WriteParams, cli: Cli, tried: Tried, key: str, value: Any, message: str
) -> None:
    write_params(tmp_path, {key: value})
    assert_refused(cli(tmp_path, "check"), f"error: params.yaml: {message}\n")
    assert contents(tmp_path).keys() == {"params.yaml"}
    tried("bad configurations", 1, "one line: key, found, allowed")


APART = [BAD_PARAMS[0], BAD_PARAMS[-1]]


@pytest.mark.parametrize(("key", "value", "message"), APART, ids=[key for key, *_ in APART])
def test_the_program_itself_refuses_them_in_one_line(
    tmp_path: Path, write_params: WriteParams, tried: Tried, key: str, value: Any, message: str
) -> None:
    write_params(tmp_path, {key: value})
    ended = run(tmp_path, "feature-survival", "check")
    assert_refused(Ended(ended.returncode, ended.stdout, ended.stderr), message)
    tried("bad configurations", 1, "one line: key, found, allowed")


def test_forty_and_more_are_in_the_tables() -> None:
    cases = [*BAD_PARAMS, *MISFITS]
    assert len(cases) == len({(key, repr(value)) for key, value, _ in cases}) >= 40

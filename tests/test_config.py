"""The reader of params.yaml. Its refusals of single values are a table in faults/test_bad_configurations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import TOP, WriteParams
from pydantic import ValidationError

from feature_survival.catalogue import Site
from feature_survival.compression.methods import check_fits
from feature_survival.config import Seed, load
from feature_survival.models import build, prunable_weights
from feature_survival.recipes import METHOD_KEYS, Recipe
from feature_survival.schema import InputError, value_at

PUBLISHED_PARAMETERS = {
    "gpt2": 124_439_808,
    "gemma-3-1b": 999_885_952,
    "gemma-2-2b": 2_614_341_888,
    "llama-3.2-1b": 1_235_814_400,
}


def test_the_shipped_params_are_accepted_and_their_grid_is_known() -> None:
    params = load(TOP / "params.yaml")
    for name in params.study.bases:
        model = params.model(name)
        blocks = model.config.get("num_hidden_layers", model.config.get("n_layer"))
        assert all(model.site(site).block < blocks for site in params.variants.sites)
    assert params.recipe("wanda-50").sparsity == 0.5


def test_a_models_budget_changes_its_sections_and_no_one_elses(tmp_path: Path, write_params: WriteParams) -> None:
    budget = {"window": 64, "sae.k": 5, "metrics.perplexity": {"window": 32, "stride": 8}}
    params = load(write_params(tmp_path, {"models.mini-llama3.budget": budget}))
    own = params.for_model("mini-llama3")
    assert (own.window, own.sae.k, own.metrics.perplexity.stride) == (64, 5, 8)
    assert own.prune == params.prune
    assert params.for_model("mini-gpt2") is params
    with pytest.raises(InputError, match="unknown name 'mini-lama3'; did you mean 'mini-llama3'"):
        params.for_model("mini-lama3")


@pytest.mark.parametrize("name", ["gpt2", "gemma-3-1b", "gemma-2-2b", "llama-3.2-1b"])
def test_a_model_of_paper_scale_is_pinned_budgeted_and_fits_every_condition(name: str) -> None:
    params = load(TOP / "params.yaml").for_model(name)
    spec = params.model(name)
    assert spec.weights.hub is not None
    with torch.device("meta"):
        model = build(spec)
    assert model.num_parameters() == PUBLISHED_PARAMETERS[name]
    weights = prunable_weights(model)
    for condition in params.compressed():
        check_fits(params.recipe(condition), weights, condition)
    wanted = params.metrics.perplexity
    assert (wanted.window, wanted.stride) == (1024, 512)


@pytest.mark.parametrize(
    ("key", "value"),
    [("models.llama-3.2-1b.sae.k", 5), ("models.llama-3", 1), ("models.llama-3.2-1b.width", None), ("gone", None)],
)
def test_a_value_is_found_at_its_key_whatever_dots_a_part_holds(key: str, value: int | None) -> None:
    assert value_at({"models": {"llama-3": 1, "llama-3.2-1b": {"sae": {"k": 5}}}}, key) == value


def test_params_cannot_be_changed_after_loading() -> None:
    params = load(TOP / "params.yaml")
    with pytest.raises(ValidationError, match="frozen"):
        params.prune.group = "matrix"  # type: ignore[misc]


@pytest.mark.parametrize("point", ["resid_post", "mlp_out", "attn_out", "attn_z"])
def test_a_site_is_read_and_printed_back(point: str) -> None:
    assert Site.parse(f"{point}.12") == Site(point, 12)
    assert str(Site(point, 12)) == f"{point}.12"


@pytest.mark.parametrize("text", ["resid_post", "resid_post.-1", "resid_pre.0", "resid_post.1.0", "", "resid_post.1\n"])
def test_a_malformed_site_is_refused_with_the_allowed_forms(text: str) -> None:
    with pytest.raises(ValueError, match=r"resid_post\.L, mlp_out\.L, attn_out\.L, attn_z\.L"):
        Site.parse(text)


def test_a_condition_takes_what_it_leaves_open_from_section_prune(tmp_path: Path, write_params: WriteParams) -> None:
    own = {"method": "wanda", "sparsity": 0.5, "group": "model", "sequential": False}
    params = load(write_params(tmp_path, {"prune.group": "matrix", "conditions.own": own}))
    assert (params.recipe("wanda-50").group, params.recipe("wanda-50").sequential) == ("matrix", True)
    assert (params.recipe("own").group, params.recipe("own").sequential) == ("model", False)


def test_section_prune_says_nothing_of_groups_to_methods_without_them(
    tmp_path: Path, write_params: WriteParams
) -> None:
    own = {
        "conditions.own": {"method": "rtn", "bits": 3, "quantization_group": 8},
        "conditions.thin": {"method": "svd", "rank": 5, "sequential": False},
    }
    changes = {"prune.group": "matrix", "prune.quantization_group": 64, **own}
    params = load(write_params(tmp_path, changes))
    assert params.recipe("rtn-4") == Recipe("rtn", group="row", bits=4, quantization_group=64)
    assert params.recipe("own") == Recipe("rtn", group="row", bits=3, quantization_group=8)
    assert params.recipe("thin") == Recipe("svd", group="row", sequential=False, quantization_group=64, rank=5)
    assert params.recipe("svd-50") == Recipe("svd", 0.5, group="row", quantization_group=64)
    assert params.recipe("sparsegpt-50") == Recipe("sparsegpt", 0.5, group="matrix", quantization_group=64)
    assert params.recipe("dense").method == "dense"


def test_each_condition_of_the_catalogue_has_a_recipe() -> None:
    params = load(TOP / "params.yaml")
    assert {params.recipe(name).method for name in params.conditions} == set(METHOD_KEYS)


def test_a_pattern_says_which_share_goes() -> None:
    params = load(TOP / "params.yaml")
    assert params.recipe("wanda-2of4")[:3] == ("wanda", 0.5, "2:4")
    assert params.recipe("wanda-4of8")[:3] == ("wanda", 0.5, "4:8")


def test_each_model_is_compressed_once_by_every_condition_of_either_study() -> None:
    params = load(TOP / "params.yaml")
    named = params.compressed()
    assert len(set(named)) == len(named)
    used = {*params.study.conditions, params.variants.condition, *params.variants.further_conditions}
    assert set(named) == used | set(params.variants.compressors)


def test_compressors_are_looked_at_at_the_first_site_only() -> None:
    variants = load(TOP / "params.yaml").variants
    first, second, *_ = variants.sites
    assert variants.conditions(second) == [variants.condition, *variants.further_conditions]
    assert set(variants.conditions(first)) == {*variants.conditions(second), *variants.compressors}


def test_dense_and_compressed_conditions_have_their_own_sae_seeds() -> None:
    params = load(TOP / "params.yaml")
    assert params.sae_seeds("dense") == params.seeds.dense
    assert params.sae_seeds("wanda-50") == params.seeds.compressed
    assert Seed(0, 1).name == "init0-data1"


def test_unknown_names_are_refused_with_the_nearest_known_one() -> None:
    params = load(TOP / "params.yaml")
    with pytest.raises(InputError, match="model: unknown name 'mini-lama3'; did you mean 'mini-llama3'"):
        params.model("mini-lama3")
    with pytest.raises(InputError, match="condition: unknown name 'wand-50'; did you mean 'wanda-50'"):
        params.recipe("wand-50")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("study: [", "line 1"),
        ("window: 1\nwindow: 2\n", "duplicate key"),
        ("- study\n", "found list; a mapping of sections is needed"),
        ("", "found NoneType; a mapping"),
        ("\x00", "not readable as YAML"),
    ],
)
def test_a_file_that_is_not_a_yaml_mapping_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        load(path)
    assert message in str(refused.value)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_a_missing_params_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"params\.yaml: no such file"):
        load(tmp_path / "params.yaml")

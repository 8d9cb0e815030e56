"""Every compression method on every family: what is stored, what it costs, what is refused before any computing."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BLOCKS, hooks_on, save_as_cell, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedModel

from feature_survival.artifacts import read_json
from feature_survival.compression.calibrate import compress
from feature_survival.compression.condition import load_compressed, write_condition
from feature_survival.compression.forms import Form, LowRank, Masked, Quantized, Updated
from feature_survival.compression.methods import METHODS, Inputs, check_fits
from feature_survival.models import prunable_weights
from feature_survival.recipes import METHOD_KEYS, Condition, Recipe
from feature_survival.schema import InputError

RECIPES = {
    "magnitude": Recipe("magnitude", 0.5),
    "wanda": Recipe("wanda", 0.5),
    "random": Recipe("random", 0.5),
    "sparsegpt": Recipe("sparsegpt", 0.5),
    "rtn": Recipe("rtn", bits=4, quantization_group=16),
    "awq": Recipe("awq", bits=3, quantization_group=16),
    "svd": Recipe("svd", 0.5),
    "activation-svd": Recipe("activation-svd", 0.5),
}
READ_INPUTS = ["wanda", "sparsegpt", "awq", "activation-svd"]
PRUNE = ["magnitude", "wanda", "random", "sparsegpt"]
PROPERTY = settings(max_examples=100, deadline=None)


def same(form: Form, other: Form) -> bool:
    mine, others = form.tensors(), other.tensors()
    return mine.keys() == others.keys() and all(torch.equal(tensor, others[key]) for key, tensor in mine.items())


def of_block(forms: dict[str, Form], number: int) -> dict[str, Form]:
    return {name: form for name, form in forms.items() if name.startswith(f"{number}.")}


def written(forms: dict[str, Form], model: PreTrainedModel, root: Path) -> PreTrainedModel:
    """The model that a condition of these forms loads as."""
    cell = save_as_cell(model, root)
    cell.prune.mkdir(parents=True)
    write_condition(forms, prunable_weights(model), cell.prune)
    return load_compressed(cell, "float32")


def test_methods_and_the_settings_they_take_are_named_alike() -> None:
    assert set(METHODS) == set(RECIPES) == set(METHOD_KEYS) - {"dense"}
    assert [name for name, method in METHODS.items() if method.needs_inputs] == READ_INPUTS


@pytest.mark.parametrize("method", RECIPES)
def test_a_written_condition_loads_as_the_base_with_rebuilt_weights_and_all_else_as_it_was(
    model: PreTrainedModel, tokens: Tensor, tmp_path: Path, method: str
) -> None:
    forms = compress(tiny(type(model).__name__), RECIPES[method], tokens, batch=4)
    loaded = written(forms, model, tmp_path)
    found, base = prunable_weights(loaded), prunable_weights(model)
    assert forms.keys() == base.keys()
    compressed = {tensor.data_ptr() for tensor in found.values()}
    for name, weight in base.items():
        assert torch.equal(found[name], forms[name].rebuild(weight)), name
        assert not torch.equal(found[name], weight), name
    others = [name for name, tensor in loaded.named_parameters() if tensor.data_ptr() not in compressed]
    assert len(others) == len(list(model.parameters())) - len(base)  # embeddings, head, norms, biases
    before = dict(model.named_parameters())
    for name in others:
        assert torch.equal(loaded.get_parameter(name), before[name]), name
    assert loaded(tokens).logits.isfinite().all()


@pytest.mark.parametrize("method", RECIPES)
def test_a_method_alone_changes_no_weight_and_leaves_no_hook(
    model: PreTrainedModel, tokens: Tensor, method: str
) -> None:
    """Only sequential calibration writes to the model, and only for methods that read inputs."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compress(model, RECIPES[method]._replace(sequential=method not in READ_INPUTS), tokens)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert hooks_on(model) == 0


@pytest.mark.parametrize("method", READ_INPUTS)
def test_sequential_calibration_reads_each_block_behind_the_compressed_ones(
    model: PreTrainedModel, tokens: Tensor, method: str
) -> None:
    recipe, family = RECIPES[method], type(model).__name__
    sequential = compress(tiny(family), recipe, tokens)
    for number in range(BLOCKS):
        # One-shot on a model whose earlier blocks are compressed by hand.
        expected = of_block(compress(model, recipe._replace(sequential=False), tokens), number)
        weights = prunable_weights(model)
        for name, form in expected.items():
            assert same(form, sequential[name]), name
            weights[name].copy_(form.rebuild(weights[name]))


@pytest.mark.parametrize("method", READ_INPUTS)
def test_sequential_calibration_changes_every_block_but_the_first(
    model: PreTrainedModel, tokens: Tensor, method: str
) -> None:
    one_shot = compress(model, RECIPES[method]._replace(sequential=False), tokens)
    sequential = compress(model, RECIPES[method], tokens)
    differing = {name.split(".")[0] for name in one_shot if not same(one_shot[name], sequential[name])}
    assert differing == {str(number) for number in range(1, BLOCKS)}


@pytest.mark.parametrize("method", READ_INPUTS)
def test_a_method_that_reads_inputs_refuses_to_run_without_tokens(llama: PreTrainedModel, method: str) -> None:
    with pytest.raises(ValueError, match=f"{method} needs calibration tokens"):
        compress(llama, RECIPES[method])


@pytest.mark.parametrize("method", RECIPES)
def test_forms_do_not_depend_on_what_was_compressed_before(llama: PreTrainedModel, tokens: Tensor, method: str) -> None:
    first = compress(tiny("LlamaForCausalLM"), RECIPES[method], tokens)
    torch.manual_seed(1)
    again = compress(llama, RECIPES[method], tokens)
    assert all(same(form, again[name]) for name, form in first.items())


@pytest.mark.parametrize("group", ["2:4", "4:8"])
@pytest.mark.parametrize("method", PRUNE)
def test_a_pattern_holds_in_every_row_of_every_matrix(
    model: PreTrainedModel, tokens: Tensor, method: str, group: str
) -> None:
    kept, of = map(int, group.split(":"))
    weights = {name: weight.clone() for name, weight in prunable_weights(model).items()}
    for name, form in compress(model, Recipe(method, 0.5, group), tokens).items():
        assert isinstance(form, Masked | Updated)
        assert (form.mask.reshape(len(form.mask), -1, of).sum(2) == kept).all(), name
        rebuilt = form.rebuild(weights[name])
        assert ((rebuilt != 0).reshape(len(rebuilt), -1, of).sum(2) <= kept).all(), name


@pytest.mark.parametrize("group", ["row", "matrix"])
@pytest.mark.parametrize("method", PRUNE)
def test_every_method_that_prunes_reaches_its_sparsity_in_each_group(
    model: PreTrainedModel, tokens: Tensor, method: str, group: str
) -> None:
    for name, form in compress(model, Recipe(method, 0.3, group), tokens).items():
        assert isinstance(form, Masked | Updated)
        gone = ~form.mask if group == "row" else ~form.mask.reshape(1, -1)
        assert (gone.sum(1) == gone.shape[1] * 3 // 10).all(), name


def test_random_masks_differ_between_tensors_and_are_the_same_on_a_second_run(llama: PreTrainedModel) -> None:
    first, again = (compress(llama, RECIPES["random"]) for _ in range(2))
    assert all(same(form, again[name]) for name, form in first.items())
    pairs = list(combinations(first.values(), 2))
    assert not any(same(form, other) for form, other in pairs)
    masks = [(form.mask, other.mask) for form, other in pairs if form.mask.shape == other.mask.shape]
    agreement = sum((mask == other).double().mean().item() for mask, other in masks) / len(masks)
    assert agreement == pytest.approx(0.5, abs=0.01)  # as two halves drawn apart


def test_random_masks_have_no_relation_to_magnitude(llama: PreTrainedModel) -> None:
    by_chance, by_magnitude = (compress(llama, RECIPES[method]) for method in ("random", "magnitude"))
    agreeing = torch.cat([(form.mask == by_magnitude[name].mask).flatten() for name, form in by_chance.items()])
    assert agreeing.double().mean().item() == pytest.approx(0.5, abs=3 * 0.5 / len(agreeing) ** 0.5)


# Recipe, bits that a weight takes, bits that a weight takes in the file.
COSTS = [
    (Recipe("wanda", 0.5), 16 / 2 + 1, 1),  # kept values are the base model's
    (Recipe("wanda", 0.5, "2:4"), 16 / 2 + 1, 1),
    (Recipe("sparsegpt", 0.25), 16 * 3 / 4 + 1, 16 * 3 / 4 + 1),
    (Recipe("rtn", bits=8, quantization_group=16), 8 + 16 / 16, 8 + 16 / 16),
    (Recipe("rtn", bits=4, quantization_group=16), 4 + 16 / 16, 4 + 16 / 16),
    (Recipe("rtn", bits=4, quantization_group=8), 4 + 16 / 8, 4 + 16 / 8),
    (Recipe("rtn", bits=3, quantization_group=16), 3 + 16 / 16, 4 + 16 / 16),  # in half bytes
]


@pytest.mark.parametrize(("recipe", "bits", "stored"), COSTS)
def test_a_weight_takes_the_bits_of_its_values_codes_scales_and_mask(
    model: PreTrainedModel, tokens: Tensor, tmp_path: Path, recipe: Recipe, bits: float, stored: float
) -> None:
    weights = prunable_weights(model)
    written(compress(tiny(type(model).__name__), recipe, tokens), model, tmp_path)
    folder = tmp_path / "artifacts" / "tiny" / "prune" / "wanda-50"
    assert read_json(folder / "condition.json")["bits_per_weight"] == pytest.approx(bits, rel=1e-12)
    assert bits_on_disk(folder, weights) == pytest.approx(stored, abs=0.05)  # codes have their width beside them


def bits_on_disk(folder: Path, weights: dict[str, Tensor]) -> float:
    """Bits a weight in weights.safetensors, its header apart: 8 bytes of its length, then JSON."""
    content = (folder / "weights.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert json.loads(content[8 : 8 + length])
    return (len(content) - 8 - length) * 8 / sum(weight.numel() for weight in weights.values())


@pytest.mark.parametrize("method", ["svd", "activation-svd"])
@pytest.mark.parametrize(("setting", "value"), [("sparsity", 0.5), ("rank", 3)])
def test_factors_take_their_own_bits_and_no_more_than_the_share_that_stays(
    model: PreTrainedModel, tokens: Tensor, tmp_path: Path, method: str, setting: str, value: Any
) -> None:
    weights = prunable_weights(model)
    forms = compress(tiny(type(model).__name__), Recipe(method)._replace(**{setting: value}), tokens)
    written(forms, model, tmp_path)
    factors = 0
    for name, form in forms.items():
        assert isinstance(form, LowRank)
        (rows, rank), columns = form.left.shape, form.right.shape[1]
        factors += rank * (rows + columns)
        if setting == "rank":
            assert rank == value
        else:  # one component more would be too many parameters
            assert rank * (rows + columns) <= rows * columns / 2 < (rank + 1) * (rows + columns), name
    folder = tmp_path / "artifacts" / "tiny" / "prune" / "wanda-50"
    total = sum(weight.numel() for weight in weights.values())
    assert read_json(folder / "condition.json")["bits_per_weight"] == pytest.approx(16 * factors / total, rel=1e-12)
    assert bits_on_disk(folder, weights) == pytest.approx(16 * factors / total, rel=1e-12)


def test_awq_stores_a_scale_for_every_input_beside_rtn(llama: PreTrainedModel, tokens: Tensor) -> None:
    plain = compress(llama, RECIPES["rtn"])
    aware = compress(llama, RECIPES["rtn"]._replace(method="awq", sequential=False), tokens)
    for name, weight in prunable_weights(llama).items():
        assert isinstance(aware[name], Quantized)
        assert aware[name].bits() - plain[name].bits() == 16 * weight.shape[1]


WEIGHTS = {"0.mlp.up_proj": torch.empty(48, 32), "0.mlp.down_proj": torch.empty(32, 48)}
MISFITS = [
    (Recipe("magnitude", 0.5, "2:5"), "pattern 2:5 does not divide a row of 32; nearest: 2:4 (0.mlp.up_proj, 48 x 32)"),
    (Recipe("wanda", 0.5, "2:3"), "pattern 2:3 does not divide a row of 32; nearest: 1:2 (0.mlp.up_proj, 48 x 32)"),
    (
        Recipe("random", 0.5, "3:32"),
        "pattern 3:32 does not divide a row of 48; nearest: 3:24 (0.mlp.down_proj, 32 x 48)",
    ),
    (Recipe("sparsegpt", 0.5, "1:9"), "pattern 1:9 does not divide a row of 32; nearest: 1:8 (0.mlp.up_proj, 48 x 32)"),
    (
        Recipe("rtn", bits=4, quantization_group=24),
        "quantization_group 24 does not divide a row of 32; nearest: 16 (0.mlp.up_proj, 48 x 32)",
    ),
    (
        Recipe("awq", bits=4, quantization_group=32),
        "quantization_group 32 does not divide a row of 48; nearest: 24 (0.mlp.down_proj, 32 x 48)",
    ),
    (Recipe("svd", rank=33), "rank 33 is above the matrix's; nearest: 32 (0.mlp.up_proj, 48 x 32)"),
    (
        Recipe("activation-svd", 0.95),
        "sparsity 0.95 leaves no rank; nearest: 0.947 (0.mlp.up_proj, 48 x 32)",  # 1 - 80 / 1536
    ),
]


@pytest.mark.parametrize(("recipe", "message"), MISFITS, ids=[recipe.method for recipe, _ in MISFITS])
def test_a_recipe_that_fits_not_every_matrix_is_refused_by_pair_finding_and_nearest_value(
    recipe: Recipe, message: str
) -> None:
    with pytest.raises(InputError) as refused:
        check_fits(recipe, WEIGHTS, "conditions.own on tiny")
    assert str(refused.value) == f"conditions.own on tiny: {message}"


@pytest.mark.parametrize("recipe", [Recipe("dense"), *RECIPES.values(), Recipe("magnitude", 0.5, "model")])
def test_recipes_that_fit_pass(recipe: Recipe) -> None:
    check_fits(recipe, WEIGHTS, "conditions.own on tiny")


shapes = st.tuples(st.integers(2, 60), st.integers(2, 60))
pruned, quantized, low_rank = (st.sampled_from(names) for names in (PRUNE, ["rtn", "awq"], ["svd", "activation-svd"]))
of_any_kind = st.one_of(
    st.tuples(pruned, st.integers(1, 12), st.integers(1, 12)).map(
        lambda drawn: Recipe(drawn[0], 0.5, f"{drawn[1]}:{drawn[1] + drawn[2]}")
    ),
    st.tuples(quantized, st.integers(1, 80)).map(lambda drawn: Recipe(drawn[0], bits=3, quantization_group=drawn[1])),
    st.tuples(low_rank, st.integers(1, 80)).map(lambda drawn: Recipe(drawn[0], rank=drawn[1])),
    st.tuples(low_rank, st.integers(0, 999)).map(lambda drawn: Recipe(drawn[0], drawn[1] / 1000)),
)


@PROPERTY
@given(recipe=of_any_kind, shape=shapes)
def test_what_the_check_accepts_can_be_computed_and_the_nearest_value_is_accepted(
    recipe: Recipe, shape: tuple[int, int]
) -> None:
    try:
        check_fits(recipe, {"w": torch.empty(shape)}, "here")
    except InputError as refused:
        found = re.match(r"here: (\w+) .*; nearest: (\S+)", str(refused))
        assert found
        setting = "group" if found[1] == "pattern" else found[1]
        value = found[2] if setting == "group" else float(found[2]) if setting == "sparsity" else int(found[2])
        bits = {"bits": recipe.bits} if recipe.bits else {}
        Condition.model_validate({"method": recipe.method, **bits, setting: value})
        recipe = recipe._replace(**{setting: value})
        check_fits(recipe, {"w": torch.empty(shape)}, "here")
    draw = torch.Generator().manual_seed(0)
    weight, x = torch.randn(shape, generator=draw), torch.randn(80, shape[1], generator=draw)
    inputs = Inputs(x.norm(dim=0), x.abs().mean(0), x.double().T @ x.double())
    assert METHODS[recipe.method].compress(weight, inputs, recipe).rebuild(weight).shape == shape


VALUES: dict[str, list[Any]] = {
    "sparsity": [0.0, 0.5],
    "group": ["row", "matrix", "model", "2:4", "4:8"],
    "bits": [2, 8],
    "quantization_group": [1, 32],
    "rank": [1, 8],
    "sequential": [True, False],
}
settings_of_conditions = st.fixed_dictionaries({}, optional={key: st.sampled_from(of) for key, of in VALUES.items()})


@settings(max_examples=400, deadline=None)
@given(method=st.sampled_from(list(METHOD_KEYS)), found=settings_of_conditions)
def test_a_condition_is_accepted_with_exactly_the_settings_its_method_takes(method: str, found: dict[str, Any]) -> None:
    names = found.keys() - {"sequential"}
    by_pattern = ":" in found.get("group", "")
    allowed = {
        "dense": not names,
        "rtn": "bits" in names and names <= {"bits", "quantization_group"},
        "svd": names in ({"sparsity"}, {"rank"}),
        "magnitude": names <= {"sparsity", "group"} and ("sparsity" in names) != by_pattern,
    }
    like = {
        "awq": "rtn",
        "activation-svd": "svd",
        "wanda": "magnitude",
        "random": "magnitude",
        "sparsegpt": "magnitude",
    }
    if allowed[like.get(method, method)]:
        condition = Condition(method=method, **found)
        assert {key: getattr(condition, key) for key in found} == found
    else:
        with pytest.raises(ValidationError) as refused:
            Condition(method=method, **found)
        assert refused.value.error_count() == 1

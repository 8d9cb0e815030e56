"""Pruning whole models, against a slow Wanda written here from the paper's formula."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import torch
from conftest import BLOCKS, contents, hooks_on, save_as_cell, tiny, truncate
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from feature_survival.artifacts import read_json
from feature_survival.compression.calibrate import _walk, compress
from feature_survival.compression.condition import load_compressed, write_condition
from feature_survival.compression.forms import Form, Masked, pack
from feature_survival.compression.methods import METHODS
from feature_survival.models import blocks, prunable_weights
from feature_survival.recipes import Recipe
from feature_survival.schema import InputError

PRUNABLE = {
    "LlamaForCausalLM": 7,
    "Gemma2ForCausalLM": 7,
    "Gemma3ForCausalLM": 7,
    "GPT2LMHeadModel": 4,
    "Qwen2ForCausalLM": 7,
    "Qwen3ForCausalLM": 7,
    "MistralForCausalLM": 7,
    "GPTNeoXForCausalLM": 4,
    "OPTForCausalLM": 6,
}


def linears(model: PreTrainedModel) -> dict[str, nn.Module]:
    return {
        f"{number}.{name}": module
        for number, block in enumerate(blocks(model))
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }


def kept(model: PreTrainedModel, recipe: Recipe, tokens: Tensor | None = None, batch: int = 32) -> dict[str, Tensor]:
    """The masks of a method that only removes weights."""
    masks = {}
    for name, form in compress(model, recipe, tokens, batch).items():
        assert isinstance(form, Masked)
        masks[name] = form.mask
    return masks


def put_into(model: PreTrainedModel, forms: dict[str, Form]) -> None:
    weights = prunable_weights(model)
    for name, form in forms.items():
        weights[name].copy_(form.rebuild(weights[name]))


def slow_wanda(model: PreTrainedModel, tokens: Tensor, sparsity: float, sequential: bool) -> dict[str, Tensor]:
    """S_ij = |W_ij| * ||X_j||_2, the lowest of each output row gone, from runs of the whole model in float64.

    Sequential: the model is run anew for each block, those before it already pruned.
    """
    modules = linears(model)
    masks = {}
    inputs: dict[str, list[Tensor]] = defaultdict(list)
    for number in range(BLOCKS):
        if sequential or number == 0:
            inputs.clear()
            handles = [
                module.register_forward_pre_hook(
                    lambda _, args, name=name: inputs[name].append(args[0].double().flatten(0, -2))
                )
                for name, module in modules.items()
            ]
            model(tokens)
            for handle in handles:
                handle.remove()
        for name, module in modules.items():
            if not name.startswith(f"{number}."):
                continue
            stored = module.weight.T if isinstance(module, Conv1D) else module.weight
            norms = torch.cat(inputs[name]).square().sum(0).sqrt().tolist()
            mask = torch.ones(stored.shape, dtype=torch.bool)
            for i, row in enumerate(stored.double().tolist()):
                scores = [abs(weight) * norm for weight, norm in zip(row, norms, strict=True)]
                order = sorted(range(len(row)), key=lambda j: (scores[j], j))
                mask[i, order[: int(len(row) * sparsity)]] = False
            masks[name] = mask
            if sequential:
                stored *= mask
    return masks


@pytest.mark.parametrize("sequential", [True, False])
def test_wanda_equals_the_slow_wanda(model: PreTrainedModel, tokens: Tensor, sequential: bool) -> None:
    masks = kept(model, Recipe("wanda", 0.5, "row", sequential), tokens, batch=4)
    expected = slow_wanda(tiny(type(model).__name__), tokens, 0.5, sequential)
    assert masks.keys() == expected.keys()
    for name, mask in masks.items():
        assert torch.equal(mask, expected[name]), name


def test_sequential_calibration_changes_later_blocks_only(llama: PreTrainedModel, tokens: Tensor) -> None:
    one_shot = kept(llama, Recipe("wanda", 0.5, sequential=False), tokens)
    sequential = kept(llama, Recipe("wanda", 0.5, sequential=True), tokens)
    differing = {name.split(".")[0] for name in one_shot if not torch.equal(one_shot[name], sequential[name])}
    assert differing == {"1", "2"}


def test_masks_do_not_depend_on_the_batch(model: PreTrainedModel, tokens: Tensor) -> None:
    in_ones, in_fours = (kept(model, Recipe("wanda", 0.3, sequential=False), tokens, batch) for batch in (1, 4))
    for name, mask in in_ones.items():
        assert torch.equal(mask, in_fours[name]), name


@pytest.mark.parametrize("sequential", [True, False])
def test_compressing_leaves_the_model_as_it_was_and_without_hooks(
    model: PreTrainedModel, tokens: Tensor, sequential: bool
) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compress(model, Recipe("wanda", 0.5, sequential=sequential), tokens)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert hooks_on(model) == 0


@pytest.mark.parametrize("sequential", [True, False])
def test_masks_do_not_depend_on_where_hidden_states_wait(
    llama: PreTrainedModel, tokens: Tensor, sequential: bool
) -> None:
    recipe = Recipe("wanda", 0.5, sequential=sequential)
    on_device, on_host = (compress(llama, recipe, tokens, 4, place) for place in (False, True))
    assert all(torch.equal(form.tensors()["mask"], on_host[name].tensors()["mask"]) for name, form in on_device.items())


def test_second_moments_are_those_of_each_maps_own_input_whether_shared_or_not(
    model: PreTrainedModel, tokens: Tensor
) -> None:
    """Maps that read one tensor share what is summed over it."""
    inputs: dict[str, list[Tensor]] = defaultdict(list)
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: inputs[name].append(args[0].double().flatten(0, -2))
        )
        for name, module in linears(model).items()
    ]
    model(tokens)
    for handle in handles:
        handle.remove()
    gathered = {
        f"{number}.{name}": of_map.second_moments()
        for number, _, of_block in _walk(model, METHODS["awq"], tokens, batch=4, on_host=False, sequential=False)
        for name, of_map in of_block.items()
    }
    assert gathered.keys() == inputs.keys()
    for name, gram in gathered.items():
        x = torch.cat(inputs[name])
        torch.testing.assert_close(gram, x.T @ x, rtol=1e-4, atol=1e-4 * float((x.T @ x).abs().max()))


@pytest.mark.parametrize("group", ["row", "matrix"])
def test_magnitude_masks_equal_a_sort_of_absolute_weights(model: PreTrainedModel, group: str) -> None:
    masks = kept(model, Recipe("magnitude", 0.5, group))
    for name, weight in prunable_weights(model).items():
        rows = weight.abs() if group == "row" else weight.abs().reshape(1, -1)
        cut = rows.sort(dim=1).values[:, rows.shape[1] // 2, None]  # the smallest kept
        assert torch.equal(masks[name], (rows >= cut).view(weight.shape)), name


def test_one_threshold_cuts_the_whole_model(llama: PreTrainedModel) -> None:
    masks = kept(llama, Recipe("magnitude", 0.5, "model"))
    weights = prunable_weights(llama)
    smallest_kept = min(weights[name].abs()[mask].min() for name, mask in masks.items())
    largest_gone = max(weights[name].abs()[~mask].max() for name, mask in masks.items())
    assert largest_gone < smallest_kept
    assert sum(int((~mask).sum()) for mask in masks.values()) == sum(mask.numel() for mask in masks.values()) // 2


def test_wanda_over_the_whole_model_prunes_the_floor_of_all_weights(llama: PreTrainedModel, tokens: Tensor) -> None:
    masks = kept(llama, Recipe("wanda", 0.37, "model", sequential=False), tokens)
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int((~mask).sum()) for mask in masks.values()) == total * 37 // 100
    assert len({int((~mask).sum()) / mask.numel() for mask in masks.values()}) > 1


def test_wanda_refuses_what_it_cannot_do(llama: PreTrainedModel, tokens: Tensor) -> None:
    with pytest.raises(ValueError, match="calibration tokens"):
        compress(llama, Recipe("wanda", 0.5))
    with pytest.raises(ValueError, match="sequential must be False"):
        compress(llama, Recipe("wanda", 0.5, "model", sequential=True), tokens)


def test_every_linear_map_of_every_block_reaches_its_sparsity_and_nothing_else_changes(
    model: PreTrainedModel, tokens: Tensor
) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    forms = compress(tiny(type(model).__name__), Recipe("wanda", 0.5), tokens)
    assert len(forms) == BLOCKS * PRUNABLE[type(model).__name__]
    put_into(model, forms)
    pruned = {id(module.weight) for module in linears(model).values()}
    for name, tensor in model.named_parameters():
        if id(tensor) in pruned:
            assert (tensor == 0).double().mean() == 0.5, name
            assert torch.equal(tensor[tensor != 0], before[name][tensor != 0])
        else:
            assert torch.equal(tensor, before[name]), name


def test_gpt2_is_pruned_by_output_feature_though_stored_transposed(gpt2: PreTrainedModel, tokens: Tensor) -> None:
    masks = kept(gpt2, Recipe("wanda", 0.25, sequential=False), tokens)
    put_into(gpt2, {name: Masked(mask) for name, mask in masks.items()})
    for number, block in enumerate(blocks(gpt2)):
        stored, mask = block.mlp.c_fc.weight, masks[f"{number}.mlp.c_fc"]  # type: ignore[union-attr]
        assert stored.shape == (32, 128)
        assert mask.shape == (128, 32)
        assert torch.equal(stored != 0, mask.T)
        assert ((stored == 0).sum(0) == 8).all()
        assert len((stored == 0).sum(1).unique()) > 1


def test_a_mask_as_gpt2_stores_its_weight_is_refused(gpt2: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"mask is \[32, 128\], the weight \[128, 32\]"):
        put_into(gpt2, {"0.mlp.c_fc": Masked(torch.ones(32, 128, dtype=torch.bool))})


def test_a_written_condition_loads_as_the_pruned_model(model: PreTrainedModel, tokens: Tensor, tmp_path: Path) -> None:
    cell = save_as_cell(model, tmp_path)
    forms = compress(tiny(type(model).__name__), Recipe("wanda", 0.5), tokens)
    cell.prune.mkdir(parents=True)
    write_condition(forms, prunable_weights(model), cell.prune)
    loaded = load_compressed(cell, "float32")
    put_into(model, forms)
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    written = read_json(cell.prune / "condition.json")
    assert written["achieved_sparsity"].keys() == {*forms, "all"}
    assert set(written["achieved_sparsity"].values()) == {0.5}
    assert written["bits_per_weight"] == 16 / 2 + 1
    total = sum(weight.numel() for weight in prunable_weights(model).values())
    assert (cell.prune / "weights.safetensors").stat().st_size < total / 8 + 10_000


def test_achieved_sparsity_is_counted_by_tensor_and_over_all_weights(llama: PreTrainedModel, tmp_path: Path) -> None:
    weights = prunable_weights(llama)
    mask = torch.ones(32, 48, dtype=torch.bool)
    mask[0] = False
    everything = sum(weight.numel() for weight in weights.values())
    write_condition({"0.mlp.down_proj": Masked(mask)}, weights, tmp_path)
    written = read_json(tmp_path / "condition.json")
    assert written["achieved_sparsity"] == {"0.mlp.down_proj": 1 / 32, "all": 48 / everything}
    # The other weights take 16 bits each, as do the kept ones here, beside the mask.
    assert written["bits_per_weight"] == pytest.approx(((everything - 48) * 16 + 32 * 48) / everything)


def test_the_dense_condition_loads_as_the_base_model(llama: PreTrainedModel, tokens: Tensor, tmp_path: Path) -> None:
    cell = save_as_cell(llama, tmp_path, "dense")
    cell.prune.mkdir(parents=True)
    write_condition({}, prunable_weights(llama), cell.prune)
    assert torch.equal(load_compressed(cell, "float32")(tokens).logits, llama(tokens).logits)
    written = read_json(cell.prune / "condition.json")
    assert written == {"achieved_sparsity": {"all": 0.0}, "bits_per_weight": 16.0}


def test_a_condition_that_does_not_fit_is_refused(llama: PreTrainedModel, tmp_path: Path) -> None:
    cell = save_as_cell(llama, tmp_path)
    cell.prune.mkdir(parents=True)
    path = cell.prune / "weights.safetensors"
    weights = prunable_weights(llama)
    whole = {f"{name}:mask": pack(torch.ones_like(weight, dtype=torch.bool)) for name, weight in weights.items()}
    name = "1.mlp.down_proj"
    mask = whole[f"{name}:mask"]
    lacking = {key: packed for key, packed in whole.items() if key != f"{name}:mask"}
    factors = {f"{name}:left": torch.ones(32, 2).half(), f"{name}:right": torch.ones(2, 47).half()}
    damages = {
        "'1.mlp.down_proj' is in one and not in the other": lacking,
        "'9.mlp.down_proj' is in one and not in the other": {**whole, "9.mlp.down_proj:mask": mask.clone()},
        f"{name}: .* does not hold rows of 48 bits": {**whole, f"{name}:mask": mask[:, 1:].contiguous()},
        rf"{name}: mask is \[31, 48\], the weight \[32, 48\]": {**whole, f"{name}:mask": mask[1:].contiguous()},
        rf"{name}: product of the factors is \[32, 47\]": {**lacking, **factors},
        f"{name}: no form of a weight has the tensors mask, odd": {**whole, f"{name}:odd": mask.clone()},
        f"{name}: no form of a weight has the tensors left, mask, right": {**whole, **factors},
    }
    for message, stored in damages.items():
        save_file(stored, path)
        with pytest.raises(InputError, match=f"weights.safetensors: does not fit tiny: .*{message}") as refused:
            load_compressed(cell, "float32")
        assert "\n" not in str(refused.value)
    truncate(path)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_compressed(cell, "float32")
    assert contents(tmp_path) == before

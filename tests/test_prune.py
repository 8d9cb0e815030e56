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
from feature_survival.compression.calibrate import prune
from feature_survival.compression.condition import load_compressed, write_condition
from feature_survival.compression.masks import pack
from feature_survival.models import apply_masks, blocks, prunable_weights
from feature_survival.schema import InputError

PRUNABLE = {
    "LlamaForCausalLM": 7,
    "Gemma2ForCausalLM": 7,
    "Gemma3ForCausalLM": 7,
    "GPT2LMHeadModel": 4,
}


def linears(model: PreTrainedModel) -> dict[str, nn.Module]:
    return {
        f"{number}.{name}": module
        for number, block in enumerate(blocks(model))
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }


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
                    lambda _, args, name=name: inputs[name].append(args[0].double().flatten(0, 1))
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
    masks = prune(model, "wanda", 0.5, "row", sequential, tokens, batch=4)
    expected = slow_wanda(tiny(type(model).__name__), tokens, 0.5, sequential)
    assert masks.keys() == expected.keys()
    for name, mask in masks.items():
        assert torch.equal(mask, expected[name]), name


def test_sequential_calibration_changes_later_blocks_only(llama: PreTrainedModel, tokens: Tensor) -> None:
    one_shot = prune(llama, "wanda", 0.5, "row", False, tokens)
    sequential = prune(llama, "wanda", 0.5, "row", True, tokens)
    differing = {name.split(".")[0] for name in one_shot if not torch.equal(one_shot[name], sequential[name])}
    assert differing == {"1", "2"}


def test_masks_do_not_depend_on_the_batch(model: PreTrainedModel, tokens: Tensor) -> None:
    in_ones, in_fours = (prune(model, "wanda", 0.3, "row", False, tokens, batch) for batch in (1, 4))
    for name, mask in in_ones.items():
        assert torch.equal(mask, in_fours[name]), name


def test_one_shot_pruning_changes_no_weight_and_leaves_no_hook(model: PreTrainedModel, tokens: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prune(model, "wanda", 0.5, "row", False, tokens)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert hooks_on(model) == 0


@pytest.mark.parametrize("group", ["row", "matrix"])
def test_magnitude_masks_equal_a_sort_of_absolute_weights(model: PreTrainedModel, group: str) -> None:
    masks = prune(model, "magnitude", 0.5, group, True)  # type: ignore[arg-type]
    for name, weight in prunable_weights(model).items():
        rows = weight.abs() if group == "row" else weight.abs().reshape(1, -1)
        cut = rows.sort(dim=1).values[:, rows.shape[1] // 2, None]  # the smallest kept
        assert torch.equal(masks[name], (rows >= cut).view(weight.shape)), name


def test_one_threshold_cuts_the_whole_model(llama: PreTrainedModel) -> None:
    masks = prune(llama, "magnitude", 0.5, "model", True)
    weights = prunable_weights(llama)
    kept = min(weights[name].abs()[mask].min() for name, mask in masks.items())
    gone = max(weights[name].abs()[~mask].max() for name, mask in masks.items())
    assert gone < kept
    assert sum(int((~mask).sum()) for mask in masks.values()) == sum(mask.numel() for mask in masks.values()) // 2


def test_wanda_over_the_whole_model_prunes_the_floor_of_all_weights(llama: PreTrainedModel, tokens: Tensor) -> None:
    masks = prune(llama, "wanda", 0.37, "model", False, tokens)
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int((~mask).sum()) for mask in masks.values()) == total * 37 // 100
    assert len({int((~mask).sum()) / mask.numel() for mask in masks.values()}) > 1


def test_wanda_refuses_what_it_cannot_do(llama: PreTrainedModel, tokens: Tensor) -> None:
    with pytest.raises(ValueError, match="calibration tokens"):
        prune(llama, "wanda", 0.5, "row", True)
    with pytest.raises(ValueError, match="sequential must be False"):
        prune(llama, "wanda", 0.5, "model", True, tokens)


def test_every_linear_map_of_every_block_reaches_its_sparsity_and_nothing_else_changes(
    model: PreTrainedModel, tokens: Tensor
) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    masks = prune(tiny(type(model).__name__), "wanda", 0.5, "row", True, tokens)
    assert len(masks) == BLOCKS * PRUNABLE[type(model).__name__]
    apply_masks(model, masks)
    pruned = {id(module.weight) for module in linears(model).values()}
    for name, tensor in model.named_parameters():
        if id(tensor) in pruned:
            assert (tensor == 0).double().mean() == 0.5, name
            assert torch.equal(tensor[tensor != 0], before[name][tensor != 0])
        else:
            assert torch.equal(tensor, before[name]), name


def test_gpt2_is_pruned_by_output_feature_though_stored_transposed(gpt2: PreTrainedModel, tokens: Tensor) -> None:
    masks = prune(gpt2, "wanda", 0.25, "row", False, tokens)
    apply_masks(gpt2, masks)
    for number, block in enumerate(blocks(gpt2)):
        stored, mask = block.mlp.c_fc.weight, masks[f"{number}.mlp.c_fc"]  # type: ignore[union-attr]
        assert stored.shape == (32, 128)
        assert mask.shape == (128, 32)
        assert torch.equal(stored != 0, mask.T)
        assert ((stored == 0).sum(0) == 8).all()
        assert len((stored == 0).sum(1).unique()) > 1


def test_a_mask_of_another_shape_is_refused(gpt2: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"'0\.mlp\.c_fc' is \[32, 128\], the weight \[128, 32\]"):
        apply_masks(gpt2, {"0.mlp.c_fc": torch.ones(32, 128, dtype=torch.bool)})


def test_a_written_condition_loads_as_the_masked_model(model: PreTrainedModel, tokens: Tensor, tmp_path: Path) -> None:
    cell = save_as_cell(model, tmp_path)
    masks = prune(tiny(type(model).__name__), "wanda", 0.5, "row", True, tokens)
    cell.prune.mkdir(parents=True)
    write_condition(masks, cell.prune)
    loaded = load_compressed(cell)
    apply_masks(model, masks)
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    sparsity = read_json(cell.prune / "sparsity.json")
    assert sparsity.keys() == {*masks, "all"}
    assert set(sparsity.values()) == {0.5}
    assert (cell.prune / "masks.safetensors").stat().st_size < sum(mask.numel() for mask in masks.values()) / 8 + 10_000


def test_the_dense_condition_loads_as_the_base_model(llama: PreTrainedModel, tokens: Tensor, tmp_path: Path) -> None:
    cell = save_as_cell(llama, tmp_path, "dense")
    cell.prune.mkdir(parents=True)
    write_condition({}, cell.prune)
    assert torch.equal(load_compressed(cell)(tokens).logits, llama(tokens).logits)
    assert read_json(cell.prune / "sparsity.json") == {"all": 0.0}


def test_masks_that_do_not_fit_are_refused(llama: PreTrainedModel, tmp_path: Path) -> None:
    cell = save_as_cell(llama, tmp_path)
    cell.prune.mkdir(parents=True)
    path = cell.prune / "masks.safetensors"
    whole = {name: pack(torch.ones_like(weight, dtype=torch.bool)) for name, weight in prunable_weights(llama).items()}
    name = "1.mlp.down_proj"
    lacking = {key: bits for key, bits in whole.items() if key != name}
    damages = {
        "'1.mlp.down_proj' is in one and not in the other": lacking,
        "'9.mlp.down_proj' is in one and not in the other": {**whole, "9.mlp.down_proj": whole[name].clone()},
        "does not hold rows of 48 bits": {**whole, name: whole[name][:, 1:].contiguous()},
        r"mask '1.mlp.down_proj' is \[31, 48\]": {**whole, name: whole[name][1:].contiguous()},
    }
    for message, packed in damages.items():
        save_file(packed, path)
        with pytest.raises(InputError, match=f"masks.safetensors: does not fit tiny: .*{message}"):
            load_compressed(cell)
    truncate(path)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_compressed(cell)
    assert contents(tmp_path) == before

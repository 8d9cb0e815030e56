"""A condition on disk: packed masks and achieved sparsity. A compressed model is base + masks, made in memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import Tensor

from feature_survival.artifacts import Cell, read_tensors, write_json
from feature_survival.compression.masks import achieved_sparsity, pack, unpack
from feature_survival.models import apply_masks, load, prunable_weights
from feature_survival.schema import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def write_condition(masks: dict[str, Tensor], folder: Path) -> None:
    """Write `masks.safetensors` (one bit a weight) and `sparsity.json` (by tensor, and `all`)."""
    save_file({name: pack(mask) for name, mask in masks.items()}, folder / "masks.safetensors")
    write_json(folder / "sparsity.json", achieved_sparsity(masks))


def load_compressed(cell: Cell) -> PreTrainedModel:
    """The cell's model: base weights with the cell's masks applied. InputError where the masks do not fit it."""
    model = load(cell.base)
    weights = prunable_weights(model)
    path = cell.prune / "masks.safetensors"
    packed = read_tensors(path)
    if packed and set(packed) != set(weights):
        odd = sorted(set(packed) ^ set(weights))[0]
        raise InputError(f"{path}: does not fit {cell.model}: {odd!r} is in one and not in the other")
    try:
        apply_masks(model, {name: unpack(bits, weights[name].shape[1]) for name, bits in packed.items()})
    except ValueError as error:
        raise InputError(f"{path}: does not fit {cell.model}: {error}") from None
    return model

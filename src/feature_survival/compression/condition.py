"""A condition on disk: what differs from the base model. A compressed model is base + condition, made in memory."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel  # here, so that whoever starts a stage knows when its imports are done

from feature_survival.artifacts import Cell, read_tensors, write_json
from feature_survival.compression.forms import FULL_BITS, Form, read_form
from feature_survival.models import load, prunable_weights
from feature_survival.schema import InputError

if TYPE_CHECKING:
    from feature_survival.catalogue import Dtype


def write_condition(forms: dict[str, Form], weights: dict[str, Tensor], folder: Path) -> None:
    """Write `weights.safetensors`, the forms' tensors named `<weight>:<tensor>`, and `condition.json`.

    weights: the base model's, [out, in] by the names of `prunable_weights`; those without a form stay as they are.
    The JSON holds the achieved sparsity (share of zeros) by tensor and over `all`, and bits a weight.
    """
    stored = {f"{name}:{key}": tensor for name, form in forms.items() for key, tensor in form.tensors().items()}
    save_file({name: tensor.cpu().contiguous() for name, tensor in stored.items()}, folder / "weights.safetensors")
    zeros = {name: int((form.rebuild(weights[name]) == 0).sum()) for name, form in forms.items()}
    bits = sum(forms[name].bits() if name in forms else w.numel() * FULL_BITS for name, w in weights.items())
    total = sum(weight.numel() for weight in weights.values())
    shares = {name: count / weights[name].numel() for name, count in zeros.items()}
    write_json(
        folder / "condition.json",
        {"achieved_sparsity": {**shares, "all": sum(zeros.values()) / total}, "bits_per_weight": bits / total},
    )


@torch.no_grad()
def load_compressed(cell: Cell, dtype: Dtype) -> PreTrainedModel:
    """The cell's model: base weights as the cell's condition has them. InputError where it does not fit the base."""
    model = load(cell.base, dtype)
    weights = prunable_weights(model)
    path = cell.prune / "weights.safetensors"
    stored: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in read_tensors(path).items():
        name, _, part = key.rpartition(":")
        stored[name][part] = tensor
    if stored and set(stored) != set(weights):
        odd = sorted(set(stored) ^ set(weights))[0]
        raise InputError(f"{path}: does not fit {cell.model}: {odd!r} is in one and not in the other")
    for name, tensors in stored.items():
        try:
            weights[name].copy_(read_form(tensors, weights[name].shape[1]).rebuild(weights[name]))
        except ValueError as error:
            raise InputError(f"{path}: does not fit {cell.model}: {name}: {error}") from None
    return model

"""What compression did to the weights: counted, not believed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from feature_survival.models import prunable_weights
from feature_survival.progress import progress
from feature_survival.schema import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def compare(base: PreTrainedModel, compressed: PreTrainedModel) -> dict[str, Any]:
    """Exact zeros and changed weights of every prunable tensor, their shares over all; and what else has changed.

    InputError that names the first weight which only one of them has, or has in another shape.
    """
    before, after = prunable_weights(base), prunable_weights(compressed)
    added = next((name for name in after if name not in before), None)
    if added is not None:
        raise InputError(
            f"--compressed: weight {added!r} is {list(after[added].shape)}, the base has none of that name"
        )
    for name, weight in before.items():
        found = after[name].shape if name in after else None
        if found != weight.shape:
            described = "missing" if found is None else f"{list(found)}"
            raise InputError(f"--compressed: weight {name!r} is {described}, the base's is {list(weight.shape)}")
    tensors = []
    zeros = was_zero = changed = 0
    for name, old in progress(before.items(), "weights", len(before), "tensor"):
        new = after[name].to(old.device)
        counts = [int(of.sum()) for of in (new == 0, old == 0, _differs(old, new))]
        zeros, was_zero, changed = zeros + counts[0], was_zero + counts[1], changed + counts[2]
        block, _, path = name.partition(".")
        tensors.append(
            {
                "block": int(block),
                "name": path,
                "shape": list(old.shape),
                "zeros": counts[0] / old.numel(),
                "changed": counts[2] / old.numel(),
            }
        )
    total = sum(weight.numel() for weight in before.values())
    return {
        "prunable": total,
        "achieved_sparsity": zeros / total,
        "base_sparsity": was_zero / total,
        "changed": changed / total,
        "tensors": tensors,
        "others": _others(base, compressed),
    }


def _differs(old: Tensor, new: Tensor) -> Tensor:
    """Where weights are others; those of the base that were stored in half precision since are not."""
    found = new != old
    for half in (torch.float16, torch.bfloat16):
        found &= new != old.to(half).to(old.dtype)
    return found


def _others(base: PreTrainedModel, compressed: PreTrainedModel) -> list[dict[str, Any]]:
    """Embeddings, head, and all the rest that is not prunable: how many tensors there are, how many changed.

    A head that both models tie to the embeddings is none of its own.
    """
    embeddings = {id(module.weight) for module in base.modules() if isinstance(module, nn.Embedding)}
    head = base.get_output_embeddings()
    heads = {f"{name}.weight" for name, module in base.named_modules() if module is head}
    pruned = {weight.data_ptr() for weight in prunable_weights(base).values()}
    seen: set[tuple[int, int]] = set()  # where a tensor lies in the base and in the compressed model
    after = dict(compressed.named_parameters(remove_duplicate=False))
    groups: dict[str, list[bool]] = {"embeddings": [], "head": [], "norms and biases": []}
    for name, old in base.named_parameters(remove_duplicate=False):
        new = after.get(name)
        place = old.data_ptr(), 0 if new is None else new.data_ptr()
        if place[0] in pruned or place in seen:
            continue
        seen.add(place)
        kind = "head" if name in heads else "embeddings" if id(old) in embeddings else "norms and biases"
        groups[kind].append(new is None or bool(_differs(old, new.to(old.device)).any()))
    return [{"name": name, "tensors": len(of), "changed": sum(of)} for name, of in groups.items() if of]

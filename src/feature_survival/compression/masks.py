"""From scores to masks, and masks to and from one bit a weight. True = kept."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from feature_survival.config import Group


def pruned_count(n: int, sparsity: float) -> int:
    """floor(n * sparsity), with the sparsity read as the decimal that was written (0.29 of 100 is 29)."""
    return int(Fraction(str(sparsity)) * n)


def keep_mask(scores: Tensor, sparsity: float) -> Tensor:
    """Bool mask, False on the `pruned_count` lowest scores of each last-dimension group, ties by index.

    scores: [..., n], any float type without NaN.
    """
    count = pruned_count(scores.shape[-1], sparsity)
    lowest = torch.sort(scores, dim=-1, stable=True).indices[..., :count]
    return torch.ones_like(scores, dtype=torch.bool).scatter_(-1, lowest, False)


def masks_from_scores(scores: dict[str, Tensor], sparsity: float, group: Group) -> dict[str, Tensor]:
    """Masks of several [out, in] score matrices.

    `row` compares within an output row, `matrix` within one matrix, `model` among all matrices given, in
    their order.
    """
    if group == "row":
        return {name: keep_mask(score, sparsity) for name, score in scores.items()}
    if group == "matrix":
        return {name: keep_mask(score.flatten(), sparsity).view_as(score) for name, score in scores.items()}
    kept = keep_mask(torch.cat([score.flatten() for score in scores.values()]), sparsity)
    pieces = kept.split([score.numel() for score in scores.values()])
    return {name: piece.view_as(score) for (name, score), piece in zip(scores.items(), pieces, strict=True)}


def pack(mask: Tensor) -> Tensor:
    """Bool [out, in] -> uint8 [out, ceil(in / 8)], most significant bit first, padded with zeros."""
    return torch.from_numpy(np.packbits(np.ascontiguousarray(mask.cpu().numpy()), axis=-1))


def unpack(packed: Tensor, width: int) -> Tensor:
    """uint8 [out, ceil(width / 8)] -> bool [out, width]; ValueError where the width cannot have been packed so."""
    if packed.dtype != torch.uint8 or packed.shape[-1] != (width + 7) // 8:
        raise ValueError(f"packed mask {packed.dtype} {list(packed.shape)} does not hold rows of {width} bits")
    return torch.from_numpy(np.unpackbits(packed.numpy(), axis=-1, count=width).astype(bool))


def achieved_sparsity(masks: dict[str, Tensor]) -> dict[str, float]:
    """Share of zeros in each mask, and over all of them under the key `all`."""
    pruned = {name: int((~mask).sum()) for name, mask in masks.items()}
    total = sum(mask.numel() for mask in masks.values())
    shares = {name: pruned[name] / mask.numel() for name, mask in masks.items()}
    return {**shares, "all": sum(pruned.values()) / total if total else 0.0}

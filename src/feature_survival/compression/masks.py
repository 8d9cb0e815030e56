"""From scores to masks. True = kept."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from feature_survival.recipes import pattern


def pruned_count(n: int, sparsity: float | Fraction) -> int:
    """floor(n * sparsity), with the sparsity read as the decimal that was written (0.29 of 100 is 29)."""
    return int(Fraction(str(sparsity)) * n)


def keep_mask(scores: Tensor, sparsity: float | Fraction) -> Tensor:
    """Bool mask, False on the `pruned_count` lowest scores of each last-dimension group, ties by index.

    scores: [..., n], any float type without NaN.
    """
    n = scores.shape[-1]
    count = pruned_count(n, sparsity)
    if count == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    rows = scores.reshape(-1, n)
    cut = _nth_lowest(rows, count)
    kept = rows > cut
    tied = kept.sum(1) < n - count
    if tied.any():  # of the scores equal to the cut, the last stay
        equal = rows[tied] == cut[tied]
        staying = n - count - kept[tied].sum(1, keepdim=True)
        kept[tied] |= equal & (equal.cumsum(1) > equal.sum(1, keepdim=True) - staying)
    return kept.reshape(scores.shape)


def _nth_lowest(rows: Tensor, nth: int) -> Tensor:
    """[rows, 1], `nth` counted from 1."""
    if rows.device.type != "cpu":
        return rows.sort(dim=1).values[:, nth - 1 : nth]
    # NumPy selects without sorting, tens of times as fast on a CPU; it has no bfloat16.
    values = rows.detach().to(torch.float32 if rows.dtype == torch.bfloat16 else rows.dtype).numpy()
    return torch.from_numpy(np.partition(values, nth - 1, axis=1)[:, nth - 1 : nth]).to(rows)


def masks_in_groups(scores: Tensor, sparsity: float | Fraction, group: str) -> Tensor:
    """Bool mask [out, in] of one matrix's scores.

    `row` compares within an output row, `matrix` within the matrix, a pattern `N:M` within every M consecutive inputs
    of a row, of which the N highest stay whatever `sparsity` is. ValueError where M does not divide a row.
    """
    if group == "row":
        return keep_mask(scores, sparsity)
    if group == "matrix":
        return keep_mask(scores.flatten(), sparsity).view_as(scores)
    kept, of = pattern(group)
    if scores.shape[1] % of:
        raise ValueError(f"pattern {group} does not divide rows of {scores.shape[1]}")
    return keep_mask(scores.reshape(len(scores), -1, of), 1 - Fraction(kept, of)).view_as(scores)


def masks_over_model(scores: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Masks of several [out, in] score matrices, all compared with one another, in their order."""
    kept = keep_mask(torch.cat([score.flatten() for score in scores.values()]), sparsity)
    pieces = kept.split([score.numel() for score in scores.values()])
    return {name: piece.view_as(score) for (name, score), piece in zip(scores.items(), pieces, strict=True)}

"""RQ3: the dense model's SAE on a compressed model's activations, and the fixed-dictionary control.

Nothing is retrained here, so nothing can look alike because two SAEs started from the same weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from feature_survival.metrics.reconstruction import CodeSums, Reconstruction
from feature_survival.sae import Dictionary

CHUNK = 1024  # tokens whose codes are held as dense rows [tokens, d_sae]


class Transfer(NamedTuple):
    """One SAE on two models' activations of the same tokens."""

    dense: Reconstruction
    compressed: Reconstruction
    jaccard: float  # mean over tokens of |both active| / |either active|; 1 where neither model activates a feature
    correlation: Tensor  # float64 [d_sae]: Pearson, over all tokens; 0 where a feature is constant on either side


def measure_transfer(sae: Dictionary, dense: Iterable[Tensor], compressed: Iterable[Tensor]) -> Transfer:
    """Run one SAE over the same tokens' activations in two models, batches [n, d_in] in the same order."""
    a, b = CodeSums(sae), CodeSums(sae)
    sums = torch.zeros(5, len(sae.b_enc), dtype=torch.float64, device=sae.b_enc.device)  # a, b, aa, bb, ab
    overlap, rows = 0.0, 0
    for x, y in zip(dense, compressed, strict=True):
        first, second = a.add(x.to(sae.b_enc.device)), b.add(y.to(sae.b_enc.device))
        rows += len(x)
        for start in range(0, len(x), CHUNK):
            u, v = (_as_rows(code, len(sae.b_enc), start) for code in (first, second))
            sums += torch.stack([term.sum(0) for term in (u, v, u * u, v * v, u * v)])
            both = ((u > 0) & (v > 0)).sum(1).double()
            either = ((u > 0) | (v > 0)).sum(1).double()
            overlap += torch.where(either > 0, both / either.clamp(min=1), 1.0).sum().item()
    mean_u, mean_v, uu, vv, uv = sums / rows
    variances = [torch.where(xx - mean**2 > 1e-11 * xx, xx - mean**2, 0.0) for xx, mean in ((uu, mean_u), (vv, mean_v))]
    spread = (variances[0] * variances[1]).sqrt()  # exactly 0 where rounding is all that varies
    correlation = torch.where(spread > 0, (uv - mean_u * mean_v) / spread, 0.0)
    return Transfer(a.result(), b.result(), overlap / rows, correlation.clamp(-1, 1).cpu())


def _as_rows(code: tuple[Tensor, Tensor], width: int, start: int) -> Tensor:
    """`CHUNK` tokens' codes from `start` as dense rows, float64 [tokens, d_sae]."""
    values, features = (part[start : start + CHUNK] for part in code)
    return values.new_zeros(len(values), width, dtype=torch.float64).scatter_(1, features, values.double())

"""RQ3: the dense model's SAE on a compressed model's activations, and the fixed-dictionary control.

Nothing is retrained here, so nothing can look alike because two SAEs started from the same weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from feature_survival.metrics.reconstruction import CodeSums, Reconstruction
from feature_survival.sae import CHUNK, Dictionary


class Transfer(NamedTuple):
    """One SAE on two models' activations of the same tokens."""

    dense: Reconstruction
    compressed: Reconstruction
    jaccard: float  # mean over tokens of |both active| / |either active|; 1 where neither model activates a feature
    correlation: Tensor  # float64 [d_sae]: Pearson, over all tokens; 0 where a feature is constant on either side


def measure_transfer(sae: Dictionary, dense: Iterable[Tensor], compressed: Iterable[Tensor]) -> Transfer:
    """Run one SAE over the same tokens' activations in two models, batches [n, d_in] in the same order."""
    a, b = CodeSums(sae), CodeSums(sae)
    products = torch.zeros(len(sae.b_enc), dtype=torch.float64, device=sae.b_enc.device)  # of the two, summed
    scratch = torch.zeros(CHUNK, len(sae.b_enc), device=sae.b_enc.device)
    overlap = 0.0
    for x, y in zip(dense, compressed, strict=True):
        codes = [*a.add(x.to(sae.b_enc.device)), *b.add(y.to(sae.b_enc.device))]
        for values, features, others, other_features in zip(*(part.split(CHUNK) for part in codes), strict=True):
            found = _looked_up(others, other_features, features, scratch)
            products.index_add_(0, features.flatten(), (values.double() * found.double()).flatten())
            both = ((values > 0) & (found > 0)).sum(1)
            either = (values > 0).sum(1) + (others > 0).sum(1) - both
            overlap += torch.where(either > 0, both.double() / either.clamp(min=1), 1.0).sum().item()
    rows = a.rows
    mean_u, mean_v, uu, vv, uv = (total / rows for total in (a.total, b.total, a.squares, b.squares, products))
    variances = [torch.where(xx - mean**2 > 1e-11 * xx, xx - mean**2, 0.0) for xx, mean in ((uu, mean_u), (vv, mean_v))]
    spread = (variances[0] * variances[1]).sqrt()  # exactly 0 where rounding is all that varies
    correlation = torch.where(spread > 0, (uv - mean_u * mean_v) / spread, 0.0)
    return Transfer(a.result(), b.result(), overlap / rows, correlation.clamp(-1, 1).cpu())


def _looked_up(values: Tensor, features: Tensor, asked: Tensor, scratch: Tensor) -> Tensor:
    """What each token's code [tokens, k] says of the features `asked` of it [tokens, m]; 0 where it names them not.

    scratch: zeros [>= tokens, d_sae], and zeros again afterwards: clearing it whole would take longer than all else.
    """
    rows = scratch[: len(values)].scatter_(1, features, values)
    found = rows.gather(1, asked)
    rows.scatter_(1, features, 0.0)
    return found

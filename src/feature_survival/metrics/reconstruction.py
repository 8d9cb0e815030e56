"""How well an SAE describes activations: FVU, L0, dead features, firing rates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from feature_survival.sae import Dictionary


class VarianceSums:
    """Streamed sums behind FVU = sum ||x - x_hat||^2 / sum ||x - mean(x)||^2, over all tokens at once.

    Predicting the mean gives 1, perfect reconstruction 0, whatever the batches. Sums are float64.
    """

    def __init__(self) -> None:
        self._rows = 0
        self._sum: Tensor | None = None  # of x, float64 [width]
        self._squares = 0.0
        self._errors = 0.0

    def add(self, x: Tensor, reconstruction: Tensor) -> None:
        """Add a batch: x and its reconstruction, both [n, width]."""
        x = x.double()
        self._rows += len(x)
        self._sum = x.sum(0) if self._sum is None else self._sum + x.sum(0)
        self._squares += x.square().sum().item()
        self._errors += (x - reconstruction.double()).square().sum().item()

    def fvu(self) -> float:
        """Fraction of variance unexplained; ValueError where the activations do not vary."""
        assert self._sum is not None, "no batch was added"
        variance = self._squares - (self._sum.square().sum() / self._rows).item()
        if variance <= 0:
            raise ValueError("FVU is undefined: the activations have no variance")
        return self._errors / variance


class Reconstruction(NamedTuple):
    """An SAE on one set of activations."""

    fvu: float
    l0: float  # mean number of active features a token
    share_dead: float  # share of features that never fire on these tokens
    firing_rate: Tensor  # float64 [d_sae]: share of tokens on which each feature is > 0


def measure_reconstruction(sae: Dictionary, batches: Iterable[Tensor]) -> Reconstruction:
    """Run an SAE over activation batches, each [n, d_in]."""
    sums = VarianceSums()
    fired = torch.zeros(len(sae.b_enc), dtype=torch.float64)
    rows = 0
    for batch in batches:
        x = batch.to(sae.W_enc.device)
        values, features = sae.encode(x)
        sums.add(x, sae.decode(values, features))
        fired += torch.bincount(features[values > 0], minlength=len(fired)).cpu()
        rows += len(x)
    rate = fired / rows
    return Reconstruction(sums.fvu(), rate.sum().item(), (fired == 0).double().mean().item(), rate)


def alive(firing_rate: Tensor, tokens: int) -> Tensor:
    """Bool [d_sae]: firing rate >= 1e-5, or >= 10 / tokens where the tokens are too few to resolve 1e-5."""
    return firing_rate >= max(1e-5, 10 / tokens)

"""How well an SAE describes activations: FVU, L0, dead features; and when and how strongly each feature fires."""

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
    mean_activation: Tensor  # float64 [d_sae]: over the tokens on which it fires; 0 where there are none
    max_activation: Tensor  # float64 [d_sae]


class CodeSums:
    """Streamed sums behind `Reconstruction`; by feature, over all tokens, float64 [d_sae]."""

    def __init__(self, sae: Dictionary) -> None:
        self._sae = sae
        self._variance = VarianceSums()
        self.rows = 0
        self._fired, self.total, self.squares, self._most = torch.zeros(4, len(sae.b_enc), dtype=torch.float64).to(
            sae.b_enc.device
        )

    def add(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a batch [n, d_in] and add it; returns what `Dictionary.encode` gives."""
        values, features = self._sae.encode(x)
        self._variance.add(x, self._sae.decode(values, features))
        active, strength = features.flatten(), values.flatten().double()  # a feature that does not fire adds nothing
        self.rows += len(x)
        self._fired.index_add_(0, active, (strength > 0).double())
        self.total.index_add_(0, active, strength)
        self.squares.index_add_(0, active, strength.square())
        self._most.scatter_reduce_(0, active, strength, "amax")
        return values, features

    def result(self) -> Reconstruction:
        """What the batches so far amount to, on the CPU."""
        rate = (self._fired / self.rows).cpu()
        mean = (self.total / self._fired.clamp(min=1)).cpu()
        dead = (rate == 0).double().mean().item()
        return Reconstruction(self._variance.fvu(), rate.sum().item(), dead, rate, mean, self._most.cpu())


def measure_reconstruction(sae: Dictionary, batches: Iterable[Tensor]) -> Reconstruction:
    """Run an SAE over activation batches, each [n, d_in]."""
    sums = CodeSums(sae)
    for batch in batches:
        sums.add(batch.to(sae.W_enc.device))
    return sums.result()


def alive(firing_rate: Tensor, tokens: int) -> Tensor:
    """Bool [d_sae]: firing rate >= 1e-5, or >= 10 / tokens where the tokens are too few to resolve 1e-5."""
    return firing_rate >= max(1e-5, 10 / tokens)

"""What a trainer of SAEs is, and what is the same for all: the start, the schedule, the longest step."""

from __future__ import annotations

import math
from typing import Protocol

from torch import Tensor

from feature_survival.config import Sae

START_NORM = 0.1  # of decoder rows; encoder columns start as these rows
LAST_RATE = 0.1  # of the learning rate, to which it falls by a half cosine
LONGEST_GRADIENT = 1.0  # over all weights


class Trainer(Protocol):
    """One SAE in training."""

    start: Tensor  # float32 [d_sae, d_in]: decoder rows before the first step

    @property
    def fired(self) -> Tensor:
        """On how many of the tokens so far, [d_sae]."""
        ...

    def __init__(self, cfg: Sae, width: int, steps: int, init: int) -> None: ...

    def step(self, x: Tensor) -> float:
        """One step on normalised activations [n, d_in]; returns the loss."""
        ...

    def dead(self) -> int:
        """Features that have not fired for `dead_after_steps`."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """By sae-lens's names; decoder rows of unit norm."""
        ...


def learning_rate(cfg: Sae, step: int, steps: int) -> float:
    """Of step 0, 1, ...: a linear warm-up, then a half cosine down to `LAST_RATE` of the whole."""
    if step < cfg.warmup_steps:
        return cfg.learning_rate * (step + 1) / cfg.warmup_steps
    done = (step - cfg.warmup_steps) / (steps - cfg.warmup_steps)
    return cfg.learning_rate * (LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * done)) / 2)

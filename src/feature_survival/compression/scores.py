"""Saliency of single weights: the lowest-scored ones are pruned.

A new score is one function and one line in `SCORES`; one in `recipes.METHOD_KEYS` says which settings it takes, before
torch is imported.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Score(NamedTuple):
    """A saliency; `needs_inputs` says whether it reads the input norms of a calibration run."""

    of: Callable[[Tensor, Tensor | None], Tensor]
    needs_inputs: bool


def magnitude(weight: Tensor, input_norms: Tensor | None = None) -> Tensor:
    """|W|, shape [out, in]."""
    return weight.abs()


def wanda(weight: Tensor, input_norms: Tensor | None) -> Tensor:
    """|W_ij| * ||X_j||_2 (Sun et al., ICLR 2024, eq. 1).

    weight [out, in]; input_norms [in]: L2 norm of each input feature over all calibration tokens, float32.
    """
    if input_norms is None:
        raise ValueError("wanda needs input norms")
    return weight.abs() * input_norms


def random(weight: Tensor, input_norms: Tensor | None = None) -> Tensor:
    """Uniform noise, the null that a saliency is held against; the same weight always draws the same."""
    seed = zlib.crc32(weight.float().cpu().contiguous().numpy().tobytes())
    return torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)).to(weight.device)


SCORES = {
    "magnitude": Score(magnitude, needs_inputs=False),
    "wanda": Score(wanda, needs_inputs=True),
    "random": Score(random, needs_inputs=False),
}

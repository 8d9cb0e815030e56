"""Saliency of single weights: the lowest-scored ones are pruned.

A new score is one function and one line in `SCORES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

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


SCORES = {"magnitude": Score(magnitude, needs_inputs=False), "wanda": Score(wanda, needs_inputs=True)}

"""What the model still predicts: cross-entropy, perplexity, and the same with an SAE spliced in."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from feature_survival.config import Site
from feature_survival.models import at_site, cross_entropy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def mean_cross_entropy(model: PreTrainedModel, tokens: Tensor, batch: int) -> float:
    """Mean next-token cross-entropy in nats over windows int64 [windows, position]; perplexity is its exp."""
    total = math.fsum(cross_entropy(model, chunk).double().sum().item() for chunk in tokens.split(batch))
    return total / (tokens.shape[0] * (tokens.shape[1] - 1))


def spliced_cross_entropy(
    model: PreTrainedModel, site: Site, replace: Callable[[Tensor], Tensor], tokens: Tensor, batch: int
) -> float:
    """`mean_cross_entropy` with the site's activations [..., width] replaced by `replace` of them.

    Position 0 (the attention sink, on which no SAE is trained) keeps its own activations.
    """

    def visit(activations: Tensor) -> Tensor:
        return torch.cat([activations[:, :1], replace(activations[:, 1:])], dim=1)

    with at_site(model, site, visit):
        return mean_cross_entropy(model, tokens, batch)


class Splice(NamedTuple):
    """Cross-entropies in nats on the same tokens."""

    model: float
    zero: float  # the site set to zero
    sae: float  # the site replaced by the SAE's reconstruction

    @property
    def score(self) -> float:
        """CE-loss score (loss recovered): 1 where the SAE costs nothing, 0 where it is as bad as zero."""
        return (self.zero - self.sae) / (self.zero - self.model)

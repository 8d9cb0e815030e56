"""What the model still predicts: cross-entropy, perplexity, and the same with an SAE spliced in (RQ3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor

from feature_survival.catalogue import Site
from feature_survival.forward import (
    at_site,
    cross_entropy,
    head_only_at,
    log_probabilities,
    start_of,
    starting_at,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Name = TypeVar("Name", bound=Hashable)


@torch.no_grad()
def window_cross_entropy(model: PreTrainedModel, tokens: Tensor, batch: int) -> Tensor:
    """Each window's mean next-token cross-entropy in nats, float64 [windows]; tokens: int64 [windows, position]."""
    return torch.cat([cross_entropy(model, chunk).double().mean(1).cpu() for chunk in tokens.split(batch)])


def mean_cross_entropy(model: PreTrainedModel, tokens: Tensor, batch: int) -> float:
    """Mean next-token cross-entropy in nats over windows int64 [windows, position]; perplexity is its exp."""
    return window_cross_entropy(model, tokens, batch).mean().item()


@torch.no_grad()
def strided_cross_entropy(model: PreTrainedModel, tokens: Tensor, new: Tensor, batch: int) -> float:
    """Mean next-token cross-entropy in nats of windows that overlap (`corpus.Strided`), each token counted once.

    tokens: int64 [windows, position]; new: int64 [windows], how many of a window's last positions count.
    """
    total = 0.0
    for chunk, counted in zip(tokens.split(batch), new.split(batch), strict=True):
        entropy = cross_entropy(model, chunk).double()
        position = torch.arange(entropy.shape[1], 0, -1)  # from the end
        total += entropy[(position <= counted[:, None]).to(entropy.device)].sum().item()
    return total / int(new.sum())


class Splice(NamedTuple):
    """A model with its site's activations replaced: means over all next-token predictions, position 0's included."""

    cross_entropy: float  # nats
    kl: float  # KL(the model's next-token distribution || the one with the replacement), nats


@torch.no_grad()
def measure_splices(
    model: PreTrainedModel,
    site: Site,
    replacements: Mapping[Name, Callable[[Tensor], Tensor]],
    tokens: Tensor,
    batch: int,
) -> tuple[float, dict[Name, Splice]]:
    """The model's own mean cross-entropy, and what each replacement of the site's activations makes of it.

    A replacement takes and returns activations [batch, position, width]. Position 0 (the attention sink, on which no
    SAE is trained) keeps its own activations. tokens: int64 [windows, position]. Behind one plain pass, passes resume
    at the site's block.
    """
    plain, sums = 0.0, {name: torch.zeros(2, dtype=torch.float64) for name in replacements}
    for chunk in tokens.to(model.device).split(batch):
        targets, predicting = chunk[:, 1:].flatten()[:, None], torch.ones_like(chunk, dtype=torch.bool)
        predicting[:, -1] = False
        with head_only_at(model, predicting):
            with recording(model, site) as read:
                expected = log_probabilities(model, chunk)
            plain -= expected.gather(-1, targets).double().sum().item()
            x, start, probability = read[site], read.get(start_of(site)), expected.exp()
            for name, replace in replacements.items():
                spliced = torch.cat([x[:, :1], replace(x[:, 1:])], dim=1)

                def visit(_: Tensor, spliced: Tensor = spliced) -> Tensor:
                    return spliced

                with resuming(model, site, start, visit):
                    found = log_probabilities(model, chunk)
                entropy = -found.gather(-1, targets).double().sum()
                sums[name] += torch.stack([entropy, divergence(expected, found, probability).double().sum()]).cpu()
    count = tokens.shape[0] * (tokens.shape[1] - 1)
    return plain / count, {name: Splice(*(total / count).tolist()) for name, total in sums.items()}


@contextmanager
def recording(model: PreTrainedModel, site: Site) -> Iterator[dict[Site | None, Tensor]]:
    """Within the block, a forward pass leaves here what is needed to resume it at the site's block: activations at the
    site and, if there is one, at `start_of(site)`; each float32 [batch, position, width]."""
    read: dict[Site | None, Tensor] = {}
    first = start_of(site)
    with ExitStack() as hooks:
        for where in {site, first or site}:
            hooks.enter_context(at_site(model, where, partial(read.__setitem__, where)))
        yield read


@contextmanager
def resuming(
    model: PreTrainedModel, site: Site, start: Tensor | None, visit: Callable[[Tensor], Tensor | None]
) -> Iterator[None]:
    """Within the block, forward passes go on from `start`, the activations at `start_of(site)`, and `visit` exchanges
    those at the site. Where `start` is None they begin at the tokens."""
    with ExitStack() as hooks:
        if start is not None:
            hooks.enter_context(starting_at(model, start_of(site), start))
        hooks.enter_context(at_site(model, site, visit))
        yield


def divergence(expected: Tensor, found: Tensor, probability: Tensor | None = None) -> Tensor:
    """KL(expected || found) in nats over the last dimension of log-probabilities [..., vocabulary].

    probability: exp(expected), where it is at hand.
    """
    probability = expected.exp() if probability is None else probability
    return (expected - found).mul_(probability).sum(-1)


def loss_recovered(model: float, zero: float, spliced: float) -> float:
    """CE-loss score of cross-entropies: 1 where a splice costs nothing, 0 where it is as bad as a site of zeros; NaN
    where those cost nothing."""
    return (zero - spliced) / (zero - model) if zero != model else math.nan

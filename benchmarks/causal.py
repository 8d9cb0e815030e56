"""`metrics.causal` beside a full forward pass per feature, on the same features and windows.

The peers hook a full pass per feature and ablation, over the windows in which the feature fires or over all windows;
like `measure_effects` they make the model's own predictions once and compare only tokens on which the feature fires.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from race import Case, Rival
from shapes import random_tokens, untrained
from torch import Tensor

from feature_survival.catalogue import Site
from feature_survival.forward import at_site, read_site
from feature_survival.metrics.causal import measure_effects
from feature_survival.sae import Dictionary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FEATURES, K = 1024, 16  # of the SAE
ABLATED, WINDOWS, BATCH = 16, 64, 32
SITE = Site("resid_post", 2)
TOLERANCE = 1e-5  # nats


class Inputs(NamedTuple):
    """What is measured on."""

    model: PreTrainedModel
    sae: Dictionary
    features: Tensor  # int64 [m]
    means: Tensor  # [m]
    tokens: Tensor  # int64 [windows, position]
    contexts: float  # windows in which a feature fires, on average


def random_dictionary(activations: Tensor) -> Dictionary:
    """An untrained SAE of [n, width] activations: random unit directions about their mean."""
    decoder = torch.nn.functional.normalize(torch.randn(FEATURES, activations.shape[1]), dim=1).to(activations.device)
    mean = activations.mean(0)
    return Dictionary(decoder.T.contiguous(), -decoder @ mean, decoder, mean, K)


@torch.no_grad()
def plain_effects(
    model: PreTrainedModel,
    site: Site,
    sae: Dictionary,
    features: Tensor,
    means: Tensor,
    tokens: Tensor,
    batch: int,
    everywhere: bool,
) -> Tensor:
    """CE change and KL by zero and mean ablation, float64 [features, 4], from full forward passes."""
    before, codes = [], []
    for chunk in tokens.split(batch):
        with at_site(model, site, lambda x: codes.append(codes_of(sae, features, x))):
            before.append(model(chunk, use_cache=False).logits[:, :-1].log_softmax(-1))
    predictions, activations, means = torch.cat(before), torch.cat(codes), means.to(tokens.device)
    rows = []
    for number, feature in enumerate(features):
        fires = activations[:, :-1, number] > 0
        numbers, count = torch.zeros(4, dtype=torch.float64), int(fires.sum())
        chosen = torch.arange(len(tokens)) if everywhere else fires.any(1).nonzero()[:, 0].cpu()
        for windows in chosen.to(tokens.device).split(batch):
            here = fires[windows]
            target, expected = tokens[windows, 1:][here][:, None], predictions[windows][here]
            for which, level in enumerate((0.0, means[number])):
                change = (level - activations[windows, :, number, None]) * sae.W_dec[feature]
                change[:, 0] = 0  # the first position keeps its own activations
                with at_site(model, site, lambda x, change=change: x + change):
                    found = model(tokens[windows], use_cache=False).logits[:, :-1][here].log_softmax(-1)
                numbers[2 * which] += (expected - found).gather(-1, target).double().sum().cpu()
                numbers[2 * which + 1] += (expected.exp() * (expected - found)).double().sum().cpu()
        rows.append(numbers / count)
    return torch.stack(rows)


def codes_of(sae: Dictionary, features: Tensor, x: Tensor) -> Tensor:
    """The features' activations [windows, position, features]; the first position activates none."""
    values, active = sae.encode(x.flatten(0, 1))
    codes = values.new_zeros(len(values), len(sae.b_enc)).scatter_(1, active, values)[:, features]
    codes = codes.view(*x.shape[:2], -1)
    codes[:, 0] = 0
    return codes


@torch.no_grad()
def inputs(ablated: int, windows: int) -> Inputs:
    """A Llama whose weights are large enough for features to matter, and features that fire."""
    model, tokens = untrained("llama", spread=0.08), random_tokens(windows)
    read = read_site(model, SITE, tokens)
    sae = random_dictionary(read[:, 1:].flatten(0, 1))
    codes = codes_of(sae, torch.arange(FEATURES), read).cpu()
    fires = (codes[:, :-1] > 0).any(1)  # the last position has no next token
    firing = fires.any(0).nonzero()[:, 0]
    features = firing[torch.randperm(len(firing), generator=torch.Generator().manual_seed(2))[:ablated]]
    return Inputs(
        model, sae, features, codes[:, 1:].mean((0, 1))[features], tokens, fires.sum(0)[features].double().mean().item()
    )


def effects(given: Inputs) -> Tensor:
    """Ours, in the peers' layout."""
    found = measure_effects(
        given.model, SITE, given.sae, given.features, given.means, given.tokens, len(given.tokens), BATCH
    )
    return torch.stack([found.cross_entropy, found.kl], dim=2).flatten(1)


def same(ours: Tensor, *others: Tensor) -> str:
    """All within TOLERANCE."""
    furthest = max((ours - other).abs().max().item() for other in others)
    assert furthest < TOLERANCE, f"differs by {furthest:.1e} nats"
    return f"effects, {furthest:.0e} of up to {ours.abs().max():.2f} nats"


def cases(full: bool = False) -> Iterator[Case]:
    """One, zero and mean ablation; the slower peer in full only."""
    given = inputs(ABLATED, WINDOWS)

    def peer(everywhere: bool) -> Tensor:
        return plain_effects(given.model, SITE, given.sae, given.features, given.means, given.tokens, BATCH, everywhere)

    peers = [
        Rival("a full pass over the same windows", lambda: peer(False), 5),
        Rival("a full pass over all windows", lambda: peer(True)),
    ]
    yield Case(
        "causal",
        f"LlamaForCausalLM, 1.3M parameters, {SITE} of 4 blocks, {len(given.features)} features that fire in "
        f"{given.contexts:.0f} of {len(given.tokens)} windows on average",
        lambda: effects(given),
        same,
        tuple(peers if full else peers[:1]),
        units=len(given.features),
        unit="feature",
    )

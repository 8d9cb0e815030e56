"""Disentanglement by the protocol of RAVEL (Huang et al., arXiv 2402.17700), on attributes of a token itself.

An interchange intervention gives a base token the latents of one attribute from a source token; the compressed model
itself runs on. In its last residual stream that attribute should then read as the source's (cause), and every other
one still as the base's (isolation).

Differences to SAEBench's `ravel`: an attribute is read out by a linear probe, not generated; its latents are found by
their means over classes, not by a mask trained through the model; the SAE's error term is kept.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from feature_survival.catalogue import Site
from feature_survival.forward import read_site, start_of
from feature_survival.metrics.attributes import NONE, most_frequent, restricted
from feature_survival.metrics.language import recording, resuming
from feature_survival.metrics.probes import COARSE, FEWEST, Probe, fit_probe
from feature_survival.metrics.probing import rank_latents
from feature_survival.models import blocks
from feature_survival.sae import Dictionary
from feature_survival.schema import InputError

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

COUNTS = (1, 4, 16)  # latents an attribute may have
CLASSES = 8  # an attribute is reduced to its most frequent ones
L2 = 1e-3  # of the read-outs
READOUT_ROWS = 4096  # the most tokens a read-out is fitted on, evenly spaced


class Pairs(NamedTuple):
    """Base and source tokens of one half of the windows, and what a forward pass of the bases starts from.

    Nothing changes before a base: of the tokens there, only keys and values are kept.
    """

    base: Tensor  # float32 [pairs, d_in]: activations at the site
    source: Tensor  # float32 [pairs, d_in]
    labels: dict[str, Tensor]  # int64 [2, pairs]: of the base, of the source
    inputs: dict[str, Tensor]  # the base's token and position; a mask of the padding before it
    past: DynamicCache  # of the tokens before the base, padded on the left
    start: Tensor  # [pairs, 1, width]: the base's residual stream at `start_of(site)`; unused where that is None


class Interchange(NamedTuple):
    """Made once per compressed model and site; every SAE is measured on it."""

    site: Site
    x_fit: Tensor  # float32 [n, d_in]: activations of the fitting half, position 0 left out
    x_test: Tensor  # likewise of the testing half
    labels_fit: dict[str, Tensor]  # int64 [n]
    readouts: dict[str, Probe]  # of the last block's residual stream; the attributes measured
    fit: Pairs
    test: Pairs


class Disentangled(NamedTuple):
    """One attribute, on the testing half's pairs."""

    cause: float  # share of the pairs that differ in it whose read-out becomes the source's
    isolation: float  # mean over other attributes: share of the pairs that differ in it whose read-out is the base's
    latents: tuple[int, ...]  # strongest first


class Disentanglement(NamedTuple):
    """Means over attributes; the score is that of cause and isolation."""

    score: float
    cause: float
    isolation: float
    by_attribute: dict[str, Disentangled]


@torch.no_grad()
def prepare_interchange(
    model: PreTrainedModel,
    site: Site,
    tokens: Tensor,
    fit: Tensor,
    attributes: Mapping[str, Tensor],
    pairs: int = 256,
    batch: int = 64,
    seed: int = 0,
) -> Interchange:
    """Read what interventions at a site start from, fit the read-outs, draw the pairs of either half.

    tokens: int64 [windows, position], <bos> first; fit: bool [windows]; attributes: int64 labels [vocabulary] by name;
    pairs: of either half, an equal share of them drawn to differ in each attribute, its classes equally often; batch:
    windows a forward pass. An attribute is reduced to its `CLASSES` most frequent classes in the fitting half; it is
    measured if `FEWEST` pairs of either half differ in it, and InputError tells that fewer than two are. Bases and
    sources are tokens all of whose attributes are read out right: what the model does not hold, no intervention can
    move (RAVEL, too, filters by what the model knows).
    """
    tokens, after_bos = tokens.to(model.device), tokens.shape[1] - 1
    parts = [_read(model, site, windows) for windows in tokens.split(batch)]
    x, last, start = (torch.cat(part)[:, 1:].flatten(0, 1) for part in zip(*parts, strict=True))
    fit = fit.to(model.device).repeat_interleave(after_bos)
    labels, readouts, held = {}, {}, torch.ones_like(fit)
    for name, of_token in attributes.items():
        found = of_token.to(model.device)[tokens[:, 1:].flatten()]
        classes = most_frequent(found[fit], CLASSES)
        if len(classes) > 1:
            labels[name] = label = restricted(found, classes)
            rows = (fit & (label != NONE)).nonzero()[:, 0]
            rows = rows[:: -(-len(rows) // READOUT_ROWS)]
            readouts[name] = fit_probe(last[rows], label[rows], len(classes), L2, balanced=True, tolerance=COARSE)
            held &= (label == NONE) | (readouts[name].predict(last) == label)
    drawn = [_draw(labels, held & half, pairs, seed) for half in (fit, ~fit)]
    measured = [name for name in labels if min(int(_differ(labels[name][rows]).sum()) for rows in drawn) >= FEWEST]
    if len(measured) < 2:
        raise InputError(
            f"disentanglement at {site}: {FEWEST} pairs of tokens that differ are needed in two attributes or more, "
            f"found {measured}; measure on more windows"
        )
    halves = [
        Pairs(
            x[rows[0]],
            x[rows[1]],
            {name: labels[name][rows] for name in measured},
            *_prefix(model, tokens[rows[0] // after_bos], rows[0] % after_bos + 1),
            start[rows[0], None],
        )
        for rows in drawn
    ]
    labels_fit = {name: labels[name][fit] for name in measured}
    return Interchange(site, x[fit], x[~fit], labels_fit, {name: readouts[name] for name in measured}, *halves)


@torch.no_grad()
def measure_disentanglement(
    model: PreTrainedModel,
    interchange: Interchange,
    sae: Dictionary,
    codes_fit: Tensor,
    counts: Sequence[int] = COUNTS,
) -> Disentanglement:
    """Cause and isolation of an SAE's latents, on the model that `interchange` was prepared on.

    codes_fit: the SAE's of `x_fit`, [n, d_sae]. An attribute's latents are the first of `rank_latents` on them; of
    `counts` of them it has as many as score best on the fitting half's pairs (of equal scores, the fewest).
    """
    steps = [sae.codes(pairs.source) - sae.codes(pairs.base) for pairs in (interchange.fit, interchange.test)]

    def shares(half: int, latents: Tensor, moved: str) -> tuple[float, float]:
        change = steps[half][:, latents] @ sae.W_dec[latents]
        return _shares(model, interchange, (interchange.fit, interchange.test)[half], change, moved)

    by_attribute = {}
    for name, labels in interchange.labels_fit.items():
        order = rank_latents(codes_fit, labels, max(counts))
        scores = {count: sum(shares(0, order[:count], name)) for count in sorted(counts)}
        latents = order[: max(scores, key=scores.__getitem__)]
        by_attribute[name] = Disentangled(*shares(1, latents, name), tuple(latents.tolist()))
    cause = fmean(found.cause for found in by_attribute.values())
    isolation = fmean(found.isolation for found in by_attribute.values())
    return Disentanglement((cause + isolation) / 2, cause, isolation, by_attribute)


def _shares(
    model: PreTrainedModel, interchange: Interchange, pairs: Pairs, change: Tensor, moved: str
) -> tuple[float, float]:
    """Cause and isolation, as to the attribute `moved`, of adding `change` [pairs, d_in] to the site."""
    after = _intervene(model, interchange.site, pairs, change)
    shares = {}
    for name, probe in interchange.readouts.items():
        right = probe.predict(after) == pairs.labels[name][1 if name == moved else 0]
        shares[name] = right[_differ(pairs.labels[name])].double().mean().item()
    return shares.pop(moved), fmean(shares.values())


def _draw(labels: Mapping[str, Tensor], allowed: Tensor, pairs: int, seed: int) -> Tensor:
    """Bases and sources, int64 [2, pairs], among the rows that are `allowed`; labels int64 [n], allowed bool [n]."""
    drawn, generator = [], torch.Generator().manual_seed(seed)
    for label in (torch.where(allowed, label, NONE) for label in labels.values()):
        members = [(label == value).nonzero()[:, 0] for value in label.unique().tolist() if value != NONE]
        for _ in range(pairs // len(labels) if len(members) > 1 else 0):
            two = torch.randperm(len(members), generator=generator)[:2].tolist()
            drawn.append([int(members[i][torch.randint(len(members[i]), (), generator=generator)]) for i in two])
    return torch.tensor(drawn, dtype=torch.long, device=allowed.device).view(-1, 2).T


def _differ(labels: Tensor) -> Tensor:
    """Pairs that both have an attribute, and not the same; its labels int64 [2, pairs] -> bool [pairs]."""
    return (labels[0] != labels[1]) & (labels != NONE).all(0)


def _read_last(model: PreTrainedModel, tokens: Tensor, **inputs: Any) -> Tensor:
    """The last block's residual stream, float32 [batch, position, width]."""
    return read_site(model, Site("resid_post", len(blocks(model)) - 1), tokens, **inputs)


def _read(model: PreTrainedModel, site: Site, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Activations [windows, position, width] at the site, in the last residual stream, and at `start_of(site)`."""
    with recording(model, site) as read:
        last = _read_last(model, tokens)
    return read[site], last, read.get(start_of(site), read[site])


def _prefix(model: PreTrainedModel, tokens: Tensor, position: Tensor) -> tuple[dict[str, Tensor], DynamicCache]:
    """Inputs of a forward pass of the token at `position` [n] alone, and the cache of those before it.

    tokens: int64 [n, position]. Prefixes are padded on the left, so that the token stands last in each.
    """
    from transformers import DynamicCache

    longest = int(position.max())
    columns = torch.arange(longest, device=tokens.device) - (longest - position[:, None])  # negative: padding
    mask, columns = (columns >= 0).long(), columns.clamp(min=0)
    past = DynamicCache(config=model.config)
    before = {"attention_mask": mask, "position_ids": columns}
    _read_last(model, tokens.gather(1, columns), past_key_values=past, use_cache=True, **before)
    inputs = {
        "tokens": tokens.gather(1, position[:, None]),
        "attention_mask": torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1),
        "position_ids": position[:, None],
    }
    return inputs, past


def _intervene(model: PreTrainedModel, site: Site, pairs: Pairs, change: Tensor) -> Tensor:
    """The last residual stream at the bases, [pairs, width], after `change` [pairs, d_in] was added to the site."""
    past: Any = copy.copy(pairs.past)
    past.layers = [copy.copy(layer) for layer in past.layers]  # a layer grows by new tensors; the old ones stay
    moved = (pairs.base + change)[:, None]
    with resuming(model, site, pairs.start, lambda _: moved):
        return _read_last(model, **pairs.inputs, past_key_values=past, use_cache=True)[:, 0]

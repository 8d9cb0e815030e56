"""RQ5: what a feature does. Ablate it in the dense model, keep the SAE's error, and see what the model then predicts.

Each feature is ablated only in contexts in which it fires; the forward pass resumes at the site's block, many
(feature, context) pairs a batch, and ends behind its last firing; logits are made only where it fires.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from feature_survival.catalogue import Site
from feature_survival.forward import head_only_at, log_probabilities, read_site, start_of
from feature_survival.metrics.language import divergence, recording, resuming
from feature_survival.metrics.quintiles import BINS, quintiles
from feature_survival.sae import Dictionary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Effects(NamedTuple):
    """Means over the tokens on which a feature fires, one row a feature; NaN where it fired on none."""

    contexts: Tensor  # int64 [m]: windows it was ablated in
    tokens: Tensor  # int64 [m]: tokens that count: the feature fires on them and they have a next one
    cross_entropy: Tensor  # float64 [m, 2]: CE with the feature ablated - CE, nats; to zero, to the mean
    kl: Tensor  # float64 [m, 2]: KL(model || model with the feature ablated), nats


@torch.no_grad()
def measure_effects(
    model: PreTrainedModel,
    site: Site,
    sae: Dictionary,
    features: Tensor,
    mean: Tensor,
    tokens: Tensor,
    most_contexts: int,
    batch: int,
) -> Effects:
    """Ablate features one at a time: x - (a_i - level) d_i at every position but the first.

    The level is zero, or the feature's mean over all tokens. features: int64 [m]; mean: [m]; tokens: int64 [windows,
    position], of which each feature takes the first `most_contexts` in which it fires; batch: windows a forward pass.
    """
    device = model.device
    features, levels = features.to(device), torch.stack([torch.zeros_like(mean), mean]).float().to(device)
    seen = torch.zeros(len(features), dtype=torch.long, device=device)
    count = torch.zeros_like(seen)
    sums = torch.zeros(len(features), 4, dtype=torch.float64, device=device)
    for chunk in tokens.to(device).split(batch):
        start, codes = _read(model, site, sae, features, chunk)
        fires = codes[:, :-1] > 0  # the last position has no next token
        anywhere = fires.any(1)
        taken = anywhere & (seen + anywhere.cumsum(0) <= most_contexts)
        seen += taken.sum(0)
        if not taken.any():
            continue
        # The model's own predictions, where any of these features fires: as many rows, found by their position.
        compared = F.pad((fires & taken[:, None]).any(-1), (1, 1))
        expected = _resume(model, site, start, None, chunk, compared)
        row_of = compared.flatten().cumsum(0).view_as(compared) - 1
        # What stands behind the last firing does not count: pairs of like length go together, and are cut there.
        lengths = (fires * torch.arange(2, fires.shape[1] + 2, device=device)[:, None]).amax(1)[taken]
        order = lengths.argsort(stable=True)
        for pairs, ends in zip(taken.nonzero()[order].split(batch), lengths[order].split(batch), strict=True):
            (window, feature), end = pairs.T, int(ends[-1])
            row, position = fires[window, :, feature].nonzero(as_tuple=True)
            position = position + 1  # of windows, whose first position has no code
            before = expected[row_of[window[row], position]]
            probability = before.exp()
            target = chunk[window[row], position + 1, None]
            keep = torch.zeros(len(window), end, dtype=torch.bool, device=device)
            keep[row, position] = True
            found = []
            for level in levels:
                change = level[feature, None] - codes[window, : end - 1, feature]  # [batch, position - 1]
                moved = change[..., None] * sae.W_dec[features[feature], None]
                begin = None if start is None else start[window, :end]
                after = _resume(model, site, begin, moved, chunk[window, :end], keep)
                found += [(before - after).gather(-1, target)[:, 0], divergence(before, after, probability)]
            count.index_add_(0, feature[row], torch.ones_like(row))
            sums.index_add_(0, feature[row], torch.stack(found, dim=1).double())
    means = (sums / count[:, None]).cpu()  # 0 / 0 = NaN: it fired nowhere
    return Effects(seen.cpu(), count.cpu(), means[:, 0::2], means[:, 1::2])


def _read(
    model: PreTrainedModel, site: Site, sae: Dictionary, features: Tensor, tokens: Tensor
) -> tuple[Tensor | None, Tensor]:
    """One plain pass up to the site: where to resume, and the features' codes [windows, position - 1, m]."""
    with recording(model, site) as read:
        x = read_site(model, site, tokens)[:, 1:]
    codes = sae.codes(x.flatten(0, 1))[:, features]
    return read.get(start_of(site)), codes.view(*x.shape[:2], -1)


def _resume(
    model: PreTrainedModel, site: Site, start: Tensor | None, change: Tensor | None, tokens: Tensor, keep: Tensor
) -> Tensor:
    """Log-probabilities [n, vocabulary] where `keep`, with `change` added to the site behind the first position."""

    def add(x: Tensor) -> Tensor | None:
        return None if change is None else torch.cat([x[:, :1], x[:, 1:] + change], dim=1)

    with resuming(model, site, start, add), head_only_at(model, keep):
        return log_probabilities(model, tokens)


def stratified(firing_rate: Tensor, alive: Tensor, count: int, seed: int) -> Tensor:
    """Alive features, int64, drawn at random: up to count / 5 from each quintile of firing rate."""
    candidates = alive.nonzero()[:, 0]
    of = torch.from_numpy(quintiles(firing_rate[candidates].numpy()))
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for number in range(BINS):
        here = candidates[of == number]
        chosen.append(here[torch.randperm(len(here), generator=generator)[: count // BINS]])
    return torch.cat(chosen).sort().values

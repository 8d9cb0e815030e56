"""The features that compression hits hardest, and what they fired on before and after."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from feature_survival.activations import Shards
from feature_survival.contexts import Excerpt, excerpts
from feature_survival.metrics.transfer import Transfer
from feature_survival.sae import Dictionary
from feature_survival.thresholds import DAMAGED, KEPT

HARDEST, BEST = 20, 5  # how many are shown
FIRINGS = 30  # the fewest tokens on which a feature must fire in the base for its correlation to mean something
UNHURT = 0.999  # a feature above it is not called hit


class Ranked(NamedTuple):
    """Feature numbers, int64 [n] each."""

    hardest: Tensor  # lowest correlation first
    best: Tensor  # highest first
    candidates: int  # features that fire often enough


def rank(transfer: Transfer, rows: int) -> Ranked:
    """The features of lowest and of highest correlation among those that fire often enough."""
    often = (transfer.dense.firing_rate * rows).round() >= FIRINGS
    numbers = often.nonzero().flatten()
    order = numbers[transfer.correlation[numbers].argsort(stable=True)]
    hit = order[transfer.correlation[order] < UNHURT][:HARDEST]
    best = [number for number in order.flip(0)[:BEST].tolist() if number not in hit.tolist()]
    return Ranked(hit, torch.tensor(best, dtype=torch.long), len(numbers))


def describe(
    ranked: Ranked, sae: Dictionary, transfer: Transfer, shards: list[Shards], tokens: Tensor, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Both lists with numbers and contexts. shards: activations of base and compressed on `tokens` [windows, position]
    without position 0."""
    chosen = torch.cat([ranked.hardest, ranked.best])
    found = [excerpts(sae, chosen, shards, by, tokens, tokenizer) for by in range(len(shards) * (len(chosen) > 0))]
    rows = [_describe(int(number), transfer, [of[place] for of in found]) for place, number in enumerate(chosen)]
    split = len(ranked.hardest)
    return {
        "hit_hardest": rows[:split],
        "kept_best": rows[split:],
        "candidates": ranked.candidates,
        "fewest_firings": FIRINGS,
    }


def _describe(number: int, transfer: Transfer, contexts: list[list[Excerpt]]) -> dict[str, Any]:
    """One feature; contexts: where it fires most in the base, and where in the compressed model."""
    correlation = transfer.correlation[number].item()
    row: dict[str, Any] = {
        "feature": number,
        "correlation": correlation,
        "state": "kept" if correlation > KEPT else "damaged" if correlation < DAMAGED else "changed",
    }
    for name, found, shown in zip(("base", "compressed"), (transfer.dense, transfer.compressed), contexts, strict=True):
        row[name] = {
            "firing_rate": found.firing_rate[number].item(),
            "mean_activation": found.mean_activation[number].item(),
            "max_activation": found.max_activation[number].item(),
            "contexts": [
                {"tokens": of.tokens, "peak": of.peak, "base": of.activations[0], "compressed": of.activations[1]}
                for of in shown
            ],
        }
    mean = row["base"]["mean_activation"]
    # alive in the base, so its mean is above 0
    row["displacement"] = (row["compressed"]["mean_activation"] - mean) / mean
    return row

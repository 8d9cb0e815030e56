"""The features that compression hits hardest, and what they fired on before and after."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from feature_survival.activations import Shards
from feature_survival.metrics.transfer import CHUNK, Transfer
from feature_survival.sae import Dictionary
from feature_survival.thresholds import DAMAGED, KEPT

HARDEST, BEST = 20, 5  # how many are shown
FIRINGS = 30  # the fewest tokens on which a feature must fire in the base for its correlation to mean something
UNHURT = 0.999  # a feature above it is not called hit
CONTEXTS = 4  # windows in which a feature fires most strongly, of each model
AROUND = 12  # tokens shown on either side of the strongest


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
    windows, positions = tokens.shape
    chosen = torch.cat([ranked.hardest, ranked.best])
    before, after = (
        _activations(sae, chosen, of.batches(CHUNK)).view(windows, positions - 1, len(chosen)) for of in shards
    )
    rows = [
        _describe(int(number), transfer, before[..., place], after[..., place], tokens, tokenizer)
        for place, number in enumerate(chosen)
    ]
    split = len(ranked.hardest)
    return {
        "hit_hardest": rows[:split],
        "kept_best": rows[split:],
        "candidates": ranked.candidates,
        "fewest_firings": FIRINGS,
    }


def _activations(sae: Dictionary, features: Tensor, batches: Iterable[Tensor]) -> Tensor:
    """What some features do on every token, float32 [tokens, features]."""
    features = features.to(sae.b_enc.device)
    return torch.cat([sae.codes(x.to(sae.b_enc.device))[:, features].cpu() for x in batches])


def _describe(
    number: int, transfer: Transfer, before: Tensor, after: Tensor, tokens: Tensor, tokenizer: Tokenizer
) -> dict[str, Any]:
    """One feature; before, after: its activations [windows, position - 1]."""
    correlation = transfer.correlation[number].item()
    row: dict[str, Any] = {
        "feature": number,
        "correlation": correlation,
        "state": "kept" if correlation > KEPT else "damaged" if correlation < DAMAGED else "changed",
    }
    for name, found, activations in (("base", transfer.dense, before), ("compressed", transfer.compressed, after)):
        row[name] = {
            "firing_rate": found.firing_rate[number].item(),
            "mean_activation": found.mean_activation[number].item(),
            "max_activation": found.max_activation[number].item(),
            "contexts": [
                _context(tokens[window], before[window], after[window], int(activations[window].argmax()), tokenizer)
                for window in _strongest(activations)
            ],
        }
    mean = row["base"]["mean_activation"]
    # alive in the base, so its mean is above 0
    row["displacement"] = (row["compressed"]["mean_activation"] - mean) / mean
    return row


def _strongest(activations: Tensor) -> list[int]:
    """Windows in which a feature fires most strongly, strongest first; those in which it is silent are none."""
    most, window = activations.amax(dim=1).topk(min(CONTEXTS, len(activations)))
    return window[most > 0].tolist()


def _context(window: Tensor, before: Tensor, after: Tensor, peak: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """Tokens around a place of a window (which is led by <bos>), with a feature's activation on each in both models."""
    start, end = max(0, peak - AROUND), min(len(before), peak + AROUND + 1)
    return {
        "tokens": pieces(tokenizer, window[1:][start:end].tolist()),
        "peak": peak - start,
        "base": [round(value, 4) for value in before[start:end].tolist()],
        "compressed": [round(value, 4) for value in after[start:end].tolist()],
    }


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """The text each token adds. Where a character is spread over several tokens, the last of them shows it."""
    shown, found = "", []
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], skip_special_tokens=False)
        whole = text.rstrip("\ufffd") if end < len(ids) else text
        found.append(whole[len(shown) :])
        shown = whole if len(whole) > len(shown) else shown
    return found

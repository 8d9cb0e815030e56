"""Where features fire most, and what they do there: a few tokens of text with an activation each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from feature_survival.activations import Shards
from feature_survival.sae import CHUNK, Dictionary

CONTEXTS = 4  # windows in which a feature fires most strongly
AROUND = 12  # tokens shown on either side of the strongest


class Excerpt(NamedTuple):
    """Tokens around the one on which a feature fires most strongly in a window."""

    tokens: list[str]
    peak: int  # place of that token among them
    activations: list[list[float]]  # of each model, one a token


def excerpts(
    sae: Dictionary, features: Tensor, models: list[Shards], by: int, tokens: Tensor, tokenizer: Tokenizer
) -> list[list[Excerpt]]:
    """Of each feature, int64 [n], the windows in which it fires most strongly in model number `by`, strongest first;
    those in which it is silent are none.

    models: the activations of each on `tokens` [windows, position] (led by <bos>) without position 0.
    """
    positions = tokens.shape[1] - 1
    peaks = torch.cat([codes.amax(dim=1) for codes in _codes(sae, features, models[by], positions)])
    most, windows = peaks.topk(min(CONTEXTS, len(peaks)), dim=0)  # [contexts, n]
    found = [_in_windows(sae, features, model, windows, positions) for model in models]
    return [
        [
            _excerpt(tokens[windows[rank, place]], [of[rank, place] for of in found], by, tokenizer)
            for rank in range(len(windows))
            if most[rank, place] > 0
        ]
        for place in range(len(features))
    ]


def _codes(sae: Dictionary, features: Tensor, model: Shards, positions: int) -> Iterator[Tensor]:
    """What some features do, float32 [windows, positions, n], a few windows at a time."""
    device = sae.b_enc.device
    features = features.to(device)
    for x in model.batches(max(1, CHUNK // positions) * positions):  # shards hold whole windows
        yield sae.codes(x.to(device))[:, features].view(-1, positions, len(features)).cpu()


def _in_windows(sae: Dictionary, features: Tensor, model: Shards, windows: Tensor, positions: int) -> Tensor:
    """What each feature does in its own windows [contexts, n]: float32 [contexts, n, positions]."""
    found = torch.zeros(*windows.shape, positions)
    first = 0
    for codes in _codes(sae, features, model, positions):
        rank, place = ((windows >= first) & (windows < first + len(codes))).nonzero(as_tuple=True)
        found[rank, place] = codes[windows[rank, place] - first, :, place]
        first += len(codes)
    return found


def _excerpt(window: Tensor, activations: list[Tensor], by: int, tokenizer: Tokenizer) -> Excerpt:
    """Tokens around a window's strongest in model number `by`; activations: of each model, [position - 1]."""
    peak = int(activations[by].argmax())
    start, end = max(0, peak - AROUND), min(len(window) - 1, peak + AROUND + 1)
    shown = [[round(value, 4) for value in of[start:end].tolist()] for of in activations]
    return Excerpt(pieces(tokenizer, window[1:][start:end].tolist()), peak - start, shown)


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """The text each token adds. Where a character is spread over several tokens, the last of them shows it."""
    shown, found = "", []
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], skip_special_tokens=False)
        whole = text.rstrip("\ufffd") if end < len(ids) else text
        found.append(whole[len(shown) :])
        shown = whole if len(whole) > len(shown) else shown
    return found

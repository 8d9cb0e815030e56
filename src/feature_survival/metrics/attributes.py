"""Attributes of a token itself: what a miniature model, which knows nothing of the world, can be asked about."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from string import ascii_lowercase

import torch
from torch import Tensor

NONE = -1  # label where an attribute does not apply
FIRST_LETTER, LEADING_SPACE, CAPITALISED, NUMERIC = "first letter", "leading space", "capitalised", "numeric"


def token_attributes(texts: Sequence[str | None]) -> dict[str, Tensor]:
    """Labels int64 [vocabulary] by attribute; `texts` has each token's text, None for <bos>.

    One leading space is set aside before a token's first character is looked at. `first letter`: 0 to 25, either
    case; NONE where the first character is no ASCII letter. `leading space`: 0 or 1. `capitalised`: 0 or 1; NONE where
    the first character is no letter. `numeric`: 1 where nothing but digits follows the space. <bos> has no attribute.
    """
    definitions: dict[str, Callable[[str], int]] = {
        FIRST_LETTER: _letter,
        LEADING_SPACE: lambda text: int(text.startswith(" ")),
        CAPITALISED: lambda text: int(_first(text).isupper()) if _first(text).isalpha() else NONE,
        NUMERIC: lambda text: int(text.removeprefix(" ").isdecimal()),
    }
    return {
        name: torch.tensor([NONE if text is None else label(text) for text in texts], dtype=torch.long)
        for name, label in definitions.items()
    }


def _first(text: str) -> str:
    return text.removeprefix(" ")[:1]


def _letter(text: str) -> int:
    first = _first(text)
    return ascii_lowercase.index(first.lower()) if first.isascii() and first.isalpha() else NONE


def most_frequent(labels: Tensor, count: int) -> Tensor:
    """The `count` most frequent values of int64 labels [n], NONE not counted, in ascending order; ties to the lower."""
    occurrences = torch.bincount(labels[labels != NONE])
    order = occurrences.argsort(descending=True, stable=True)[:count]
    return order[occurrences[order] > 0].sort().values


def restricted(labels: Tensor, values: Tensor) -> Tensor:
    """Labels as positions in `values`; NONE for any other value."""
    found = labels[..., None] == values
    return torch.where(found.any(-1), found.long().argmax(-1), NONE)


def binary_tasks(labels: Mapping[str, Tensor], letters: Tensor) -> dict[str, Tensor]:
    """Labels int64 [n] of 0, 1 or NONE: the binary attributes as they are, each of `letters` against all others.

    labels: attributes of n tokens, a row of `token_attributes` each; letters: e.g. `most_frequent` of the fitting half.
    """
    first = labels[FIRST_LETTER]
    tasks = {name: of for name, of in labels.items() if name != FIRST_LETTER}
    for letter in letters.tolist():
        one = torch.where(first == NONE, NONE, (first == letter).long())
        tasks[f"{FIRST_LETTER} {ascii_lowercase[letter]}"] = one
    return tasks

"""RQ2: which dense features are found again in the SAE of a compressed model, for three pairings of seeds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from feature_survival.config import Seed

SAME_SEEDS = "same init, same order"
OTHER_ORDER = "same init, other order"
OTHER_INIT = "other init, other order"
RANDOM = "random dictionary"
PAIRINGS = (SAME_SEEDS, OTHER_ORDER, OTHER_INIT)


class Pair(NamedTuple):
    """A dense SAE and the cell's SAE it is compared with."""

    pairing: str
    dense: Seed
    compressed: Seed


def pairs(dense: list[Seed], compressed: list[Seed], is_dense_cell: bool) -> Iterator[Pair]:
    """Every dense SAE with every SAE of the cell that stands in one of the three pairings.

    SAEs that share the order of tokens but not the weights they start from answer no question and are left
    out, as is an SAE beside itself.
    """
    for a in dense:
        for b in compressed:
            if a == b:
                if not is_dense_cell:
                    yield Pair(SAME_SEEDS, a, b)
            elif a.init == b.init:
                yield Pair(OTHER_ORDER, a, b)
            elif a.data != b.data:
                yield Pair(OTHER_INIT, a, b)

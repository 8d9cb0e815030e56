"""RQ2: which dense features are found again in the SAE of a compressed model, for three pairings of seeds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from feature_survival.config import Seed

SAME_SEEDS = "same init, same order"
OTHER_ORDER = "same init, other order"
OTHER_INIT = "other init, other order"
RANDOM = "random dictionary"
FIXED = "fixed dictionary"  # no second SAE: a feature's activations in both models, see `transfer`
PAIRINGS = (SAME_SEEDS, OTHER_ORDER, OTHER_INIT)

# Columns that the stage writes and the summaries read.
FEATURE = ["dense_seed", "feature"]  # what names a feature
ABLATIONS = ("zero", "mean")
OUTCOMES = {(outcome, ablation): f"{outcome}_{ablation}" for outcome in ("ce", "kl") for ablation in ABLATIONS}


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


def survival_column(pairing: str, tau: float) -> str:
    """Where a feature's survival stands, e.g. `survival (same init, same order) 0.7`."""
    return f"survival ({pairing}) {tau:g}"


def survival_by_feature(matches: pd.DataFrame, taus: list[float]) -> pd.DataFrame:
    """One row a dense feature, one column a pairing and tau: the share of the SAEs it is paired with in which it is
    found again; NaN where its SAE stands in no such pair.

    matches: one row a feature and pair, with `pairing`, `dense_seed`, `feature`, `mutual_cosine`.
    """

    def shares(of_pairing: pd.DataFrame, tau: float) -> pd.Series:
        return of_pairing.assign(found=of_pairing["mutual_cosine"] >= tau).groupby(FEATURE)["found"].mean()

    columns = {
        survival_column(str(pairing), tau): shares(of_pairing, tau)
        for pairing, of_pairing in matches.groupby("pairing", sort=False)
        for tau in taus
    }
    return pd.DataFrame(columns).rename_axis(FEATURE).reset_index()

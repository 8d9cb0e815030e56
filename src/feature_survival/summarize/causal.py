"""RQ5: are the features that survive those that matter to the dense model?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from feature_survival.metrics.relevance import Features, measure_relevance
from feature_survival.metrics.survival import OUTCOMES
from feature_survival.summarize.fragility import pairings
from feature_survival.summarize.measured import Measured, Row, by_sae

NUMBERS = [f"{group}_{value}" for group in ("survivors", "casualties") for value in ("q25", "median", "q75")]
NUMBERS += ["rho", "delta", "low", "high", "p"]
FAMILY = ["pairing", "ablation", "outcome"]  # cells of one family are tested together: Holm's correction


def rows(measured: Measured) -> Iterator[tuple[str, Row]]:
    """Effects of survivors against casualties, of every compressed cell, in a sample balanced by firing rate.

    A feature survived where it is found in half or more of the SAEs it is paired with. A cell in which no quintile
    holds survivors and casualties has a row of n = 0.
    """
    if measured.is_dense:
        return
    metrics = measured.params.metrics
    for pairing, features in pairings(measured):
        for (outcome, ablation), column in OUTCOMES.items():
            ablated = features.dropna(subset=[column])
            if ablated.empty:  # none of the pairing's dense SAEs was ablated
                continue
            saes = [
                Features(rate, effect, survived >= 0.5)
                for rate, effect, survived in (
                    cluster.T for cluster in by_sae(ablated, ["firing_rate", column, "survived"])
                )
            ]
            key: Row = {**measured.key, "pairing": pairing, "ablation": ablation, "outcome": outcome}
            key |= {"n_ablated": len(ablated), "n_saes": len(saes)}
            found = measure_relevance(saes, metrics.bootstrap_samples, metrics.seed)
            if found is None:
                yield "causal", {**key, "n_survivors": 0, "n_casualties": 0, **dict.fromkeys(NUMBERS, np.nan)}
                continue
            key |= {"n_survivors": len(found.survivors), "n_casualties": len(found.casualties)}
            for group, effects in (("survivors", found.survivors), ("casualties", found.casualties)):
                low, middle, high = np.percentile(effects, [25, 50, 75])
                key |= {f"{group}_q25": low, f"{group}_median": middle, f"{group}_q75": high}
            delta, low, high = found.delta
            yield "causal", {**key, "rho": found.rho, "delta": delta, "low": low, "high": high, "p": found.p}

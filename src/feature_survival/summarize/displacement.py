"""The initialisation control: does survival follow how far a feature moved from the weights it started from?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from feature_survival.metrics.fragility import measure_confound
from feature_survival.metrics.survival import OTHER_INIT, OTHER_ORDER, SAME_SEEDS, survival_column
from feature_survival.summarize.fragility import has_quintiles, pairings, trend
from feature_survival.summarize.measured import Measured, Row, by_sae, count
from feature_survival.thresholds import MAIN_TAU


def rows(measured: Measured) -> Iterator[tuple[str, Row]]:
    """Quintiles of displacement, least moved first; and the confound: the part that needs a shared start.

    Same seeds share the order of tokens too; two dense SAEs of another order show the part of the start alone.
    """
    for pairing, features in pairings(measured):
        counts = measured.counts(pairing)
        found = trend(measured, features, "displacement")
        for number, (survival, low, high) in enumerate(found.quintiles, start=1):
            key: Row = {**measured.key, "pairing": pairing, "quintile": number}
            key |= {"displacement": found.means[number - 1], "rho_features": found.rho_features}
            yield "displacement", {**key, "survival": survival, "low": low, "high": high, **counts}
    for same in (SAME_SEEDS, OTHER_ORDER):
        if not {same, OTHER_INIT} <= set(measured.pairings()):
            continue
        features = measured.paired(same, OTHER_INIT)
        if has_quintiles(features):
            columns = ["displacement", *(survival_column(pairing, MAIN_TAU) for pairing in (same, OTHER_INIT))]
            clusters = list(by_sae(features, columns))
            metrics = measured.params.metrics
            confound = measure_confound(
                [cluster[:, 0] for cluster in clusters],
                [cluster[:, 1:] for cluster in clusters],
                metrics.bootstrap_samples,
                metrics.seed,
            )
            moved = float(np.median(features["displacement"]))
            yield (
                "displacement_tests",
                {
                    **measured.key,
                    "pairing": same,
                    **{"confound": confound.mean, "low": confound.low, "high": confound.high},
                    "median_displacement": moved,
                    **count(features),
                },
            )

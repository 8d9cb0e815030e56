"""RQ4: survival by quintile of dense firing rate, the tests of a trend, and what else foretells survival."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from feature_survival.metrics.fragility import Cluster, Trend, measure_predictors, measure_trend
from feature_survival.metrics.quintiles import BINS
from feature_survival.metrics.survival import FIXED, RANDOM
from feature_survival.summarize.measured import Measured, Row, by_sae

PREDICTORS = ["log_firing_rate", "mean_activation", "max_activation", "encoder_decoder_cosine", "displacement"]


def has_quintiles(features: pd.DataFrame) -> bool:
    """Whether every dense SAE has a feature for each quintile."""
    return bool(features.groupby("dense_seed").size().min() >= BINS)


def pairings(measured: Measured) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each pairing with its features, and for a compressed cell last the control without retraining.

    Pairings in which an SAE has fewer alive features than there are quintiles are left out.
    """
    for pairing in [*measured.pairings(), *([] if measured.is_dense else [FIXED])]:
        features = measured.survived(pairing)
        if pairing != RANDOM and has_quintiles(features):
            yield pairing, features


def trend(measured: Measured, features: pd.DataFrame, by: str) -> Trend:
    """Survival, in column `survived`, along another column."""
    clusters = [Cluster(*columns.T) for columns in by_sae(features, [by, "survived"])]
    return measure_trend(clusters, measured.params.metrics.bootstrap_samples, measured.params.metrics.seed)


def rows(measured: Measured) -> Iterator[tuple[str, Row]]:
    """Quintiles of firing rate, rarest first; the tests of a trend; and every predictor of survival."""
    for pairing, features in pairings(measured):
        counts = measured.counts(pairing)
        key: Row = {**measured.key, "pairing": pairing}
        found = trend(measured, features, "firing_rate")
        for number, (survival, low, high) in enumerate(found.quintiles, start=1):
            yield "fragility", {**key, "quintile": number, "survival": survival, "low": low, "high": high, **counts}
        features = features.assign(log_firing_rate=np.log(features["firing_rate"]))
        told = measure_predictors(list(by_sae(features, PREDICTORS)), [s[:, 0] for s in by_sae(features, ["survived"])])
        tests: Row = {
            **{"gap": found.gap.mean, "gap_low": found.gap.low, "gap_high": found.gap.high},
            **{"rho_bins": found.rho_bins, "p_bins": found.p_bins, "n_bins": BINS},
            "rho_features": found.rho_features,
            "auc": told.auc_all,
        }
        yield "fragility_tests", {**key, **tests, **counts}
        for name, (coefficient, low, high), p, auc in zip(PREDICTORS, told.coefficients, told.p, told.auc, strict=True):
            row: Row = {"coefficient": coefficient, "low": low, "high": high, "p": p, "auc": auc}
            yield "predictors", {**key, "predictor": name, **row, **counts}

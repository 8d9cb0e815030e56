"""RQ4: do rarely firing features survive more or less often than frequent ones?"""

from __future__ import annotations

from itertools import permutations
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata, spearmanr

from feature_survival.stats import Estimate, cluster_mean, cluster_replicates, interval

BINS = 5


class Cluster(NamedTuple):
    """The alive features of one dense SAE."""

    firing_rate: np.ndarray  # [n], on dense activations
    survived: np.ndarray  # [n] in 0-1: share of the SAEs it is paired with in which the feature is found again


class Fragility(NamedTuple):
    """Survival by quintile of dense firing rate, rarest first, and the tests of a trend."""

    quintiles: list[Estimate]
    gap: Estimate  # S(rarest quintile) - S(most frequent)
    rho_bins: float  # the published statistic: Spearman over the five bin means
    p_bins: float  # exact, two-sided; with five bins never below 1/60
    rho_features: float  # Spearman over features, mean over dense SAEs


def quintiles(values: np.ndarray) -> np.ndarray:
    """Bin number 0-4 of each value, [n]: equal counts, lowest values first, ties by position."""
    rank = np.empty(len(values), dtype=np.int64)
    rank[np.argsort(values, kind="stable")] = np.arange(len(values))
    return rank * BINS // len(values)


def exact_spearman(y: np.ndarray) -> tuple[float, float]:
    """Spearman of y against 1..n and its exact two-sided p over all n! orders (n <= 8); NaN where y is constant."""
    if np.ptp(y) == 0:
        return float("nan"), float("nan")
    x = np.arange(1, len(y) + 1)
    rho = float(spearmanr(x, y).statistic)
    ranks = rankdata(y)
    null = [np.corrcoef(x, order)[0, 1] for order in permutations(ranks)]
    return rho, float(np.mean(np.abs(null) >= abs(rho) - 1e-12))


def measure_fragility(clusters: list[Cluster], samples: int, seed: int) -> Fragility:
    """All statistics of one cell and pairing; intervals from the two-stage bootstrap over SAEs x features.

    ValueError where an SAE has fewer than five alive features.
    """
    fewest = min(len(rate) for rate, _ in clusters)
    if fewest < BINS:
        raise ValueError(f"fragility needs at least {BINS} alive features an SAE, found {fewest}")
    bins = [quintiles(rate) for rate, _ in clusters]
    means, replicates = [], []
    for number in range(BINS):
        within = [survived[of == number, None] for (_, survived), of in zip(clusters, bins, strict=True)]
        means.append(float(cluster_mean(within)[0]))
        replicates.append(cluster_replicates(within, samples, seed, stream=number)[:, 0])
    by_quintile = [interval(mean, drawn) for mean, drawn in zip(means, replicates, strict=True)]
    gap = interval(means[0] - means[-1], replicates[0] - replicates[-1])
    rho_bins, p_bins = exact_spearman(np.array(means))
    varied = [(rate, survived) for rate, survived in clusters if len(set(survived)) > 1 and len(set(rate)) > 1]
    rhos = [float(spearmanr(rate, survived).statistic) for rate, survived in varied]
    rho_features = float(np.mean(rhos)) if rhos else float("nan")
    return Fragility(by_quintile, gap, rho_bins, p_bins, rho_features)

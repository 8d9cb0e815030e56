"""The studies' statistics, on arrays: scipy's and statsmodels' tests, and intervals that resample SAEs and features."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, mannwhitneyu, spearmanr


class Estimate(NamedTuple):
    """A value with its 95% interval."""

    mean: float
    low: float
    high: float


def interval(mean: float, replicates: np.ndarray) -> Estimate:
    """Percentile interval of bootstrap replicates, [samples], around a value; NaN where there are none."""
    if not len(replicates):
        return Estimate(float(mean), float("nan"), float("nan"))
    places = np.array([0.025, 0.975]) * (len(replicates) - 1)  # no interpolation: replicates may be infinite
    low, high = np.sort(replicates)[places.round().astype(int)]
    return Estimate(float(mean), float(low), float(high))


def binomial(count: int, n: int) -> Estimate:
    """A share, count of n, with its exact (Clopper-Pearson) interval."""
    found = binomtest(count, n).proportion_ci()
    return Estimate(count / n, float(found.low), float(found.high))


def cluster_mean(clusters: list[np.ndarray]) -> np.ndarray:
    """Mean over clusters of the means of their rows, [m]; ValueError where there is none or one is empty."""
    if not clusters or any(len(cluster) == 0 for cluster in clusters):
        raise ValueError("at least one cluster is needed, and none may be empty")
    return np.mean([cluster.mean(axis=0) for cluster in clusters], axis=0)


def cluster_replicates(clusters: list[np.ndarray], samples: int, seed: int, stream: int = 0) -> np.ndarray:
    """Two-stage bootstrap of `cluster_mean`, float64 [samples, m].

    clusters: one [n_r, m] array a cluster (a dense SAE), rows its features, columns statistics that are resampled
    together. Each sample draws clusters with replacement, then rows within each drawn one. Which clusters are drawn
    depends on the seed alone, which rows on the stream too: replicates of two sets of features of the same SAEs
    (two streams) may be subtracted.
    """
    which, rows = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1, stream])
    means = np.empty((len(clusters), samples, clusters[0].shape[1]))
    for position in range(len(clusters)):  # one place in the resampled list of clusters
        drawn = which.integers(len(clusters), size=samples)
        for number, cluster in enumerate(clusters):
            here = np.flatnonzero(drawn == number)
            means[position, here] = cluster[rows.integers(len(cluster), size=(len(here), len(cluster)))].mean(axis=1)
    return means.mean(axis=0)


def cluster_bootstrap(clusters: list[np.ndarray], samples: int, seed: int) -> list[Estimate]:
    """`cluster_mean` of each of the m columns with its 95% interval from `cluster_replicates`."""
    means = cluster_mean(clusters)
    replicates = cluster_replicates(clusters, samples, seed)
    return [interval(mean, column) for mean, column in zip(means, replicates.T, strict=True)]


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation; NaN where either is constant."""
    return float("nan") if len(set(x)) < 2 or len(set(y)) < 2 else float(spearmanr(x, y).statistic)


def auc(x: np.ndarray, y: np.ndarray) -> float:
    """P(x > y) + P(x = y) / 2: the area under the ROC curve of telling the x [n] from the y [m] by their value.

    NaN where a group is empty. Cliff's delta is 2 * auc - 1.
    """
    return float(mannwhitneyu(x, y).statistic / (len(x) * len(y))) if len(x) and len(y) else float("nan")


def bootstrap_delta(clusters: list[tuple[np.ndarray, np.ndarray]], samples: int, seed: int) -> Estimate:
    """Mean over clusters of Cliff's delta of their two groups; each sample draws clusters, then rows of either group.

    clusters: (x [n_r], y [m_r]) of each, none empty.
    """
    draw = np.random.default_rng(seed)
    signs = [np.sign(x[:, None] - y) for x, y in clusters]
    which = draw.integers(len(clusters), size=(samples, len(clusters)))
    drawn = np.empty(which.shape)
    for number, sign in enumerate(signs):
        places = which == number
        # How often each row was drawn stands in for the drawn rows: one matrix product instead of a loop.
        times_x, times_y = (draw.multinomial(n, [1 / n] * n, size=int(places.sum())) for n in sign.shape)
        drawn[places] = ((times_x @ sign) * times_y).sum(axis=1) / sign.size
    return interval(float(np.mean([sign.mean() for sign in signs])), drawn.mean(axis=1))


def mann_whitney(x: np.ndarray, y: np.ndarray) -> float:
    """Two-sided p of the two groups being of one distribution."""
    return float(mannwhitneyu(x, y, alternative="two-sided").pvalue)


def holm(p: np.ndarray) -> np.ndarray:
    """p values corrected for being tested together (Holm); NaNs are not tests and stay NaN."""
    from statsmodels.stats.multitest import multipletests

    out = np.full(len(p), np.nan)
    tested = np.isfinite(p)
    if tested.any():
        out[tested] = multipletests(p[tested], method="holm")[1]
    return out


class Logistic(NamedTuple):
    """A logistic regression on standardised columns; all NaN where the outcome can be told without error."""

    coefficients: np.ndarray  # [p]: log odds per standard deviation
    low: np.ndarray  # [p], 95% Wald interval
    high: np.ndarray
    p: np.ndarray


def logistic(x: np.ndarray, y: np.ndarray) -> Logistic:
    """Fit P(y) on columns x [n, p] of mean 0 and standard deviation 1; y [n] in 0-1 (binomial GLM of statsmodels)."""
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM
    from statsmodels.tools.sm_exceptions import PerfectSeparationWarning, SingularMatrixWarning

    design = np.column_stack([np.ones(len(x)), x])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # overflows on the way to a separation
        warnings.simplefilter("ignore", PerfectSeparationWarning)
        warnings.simplefilter("ignore", SingularMatrixWarning)
        fit = GLM(y, design, family=Binomial()).fit()
        if np.abs(y - fit.fittedvalues).max() < 1e-3:
            nothing = np.full(x.shape[1], np.nan)
            return Logistic(nothing, nothing, nothing, nothing)
        low, high = fit.conf_int()[1:].T
        return Logistic(fit.params[1:], low, high, fit.pvalues[1:])

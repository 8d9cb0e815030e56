"""The studies' statistics, on arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A value with its 95% interval."""

    mean: float
    low: float
    high: float


def interval(mean: float, replicates: np.ndarray) -> Estimate:
    """Percentile interval of bootstrap replicates, [samples], around a value."""
    low, high = np.percentile(replicates, [2.5, 97.5])
    return Estimate(float(mean), float(low), float(high))


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

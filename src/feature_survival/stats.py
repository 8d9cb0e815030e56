"""The studies' statistics, on arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A mean with its 95% interval."""

    mean: float
    low: float
    high: float


def cluster_bootstrap(clusters: list[np.ndarray], samples: int, seed: int) -> list[Estimate]:
    """Mean over clusters of the cluster means, with a percentile interval from a two-stage bootstrap.

    clusters: one [n_r, m] array a cluster (a pair of seeds), rows its features, columns m statistics that
    are resampled together. Each sample draws clusters with replacement, then rows within each drawn one.
    Returns m estimates; ValueError where a cluster is empty.
    """
    if not clusters or any(len(cluster) == 0 for cluster in clusters):
        raise ValueError("cluster bootstrap needs at least one cluster, and none may be empty")
    rng = np.random.default_rng(seed)
    means = np.empty((len(clusters), samples, clusters[0].shape[1]))
    for position in range(len(clusters)):  # one slot of the resampled list of clusters
        drawn = rng.integers(len(clusters), size=samples)
        for number, cluster in enumerate(clusters):
            here = np.flatnonzero(drawn == number)
            rows = rng.integers(len(cluster), size=(len(here), len(cluster)))
            means[position, here] = cluster[rows].mean(axis=1)
    resampled = means.mean(axis=0)
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    centre = np.mean([cluster.mean(axis=0) for cluster in clusters], axis=0)
    return [Estimate(*map(float, column)) for column in zip(centre, low, high, strict=True)]

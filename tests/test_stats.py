"""The cluster bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

from feature_survival.stats import Estimate, cluster_bootstrap


def planted(clusters: int, rows: int, seed: int, mean: float = 0.3) -> list[np.ndarray]:
    """Clusters whose own means scatter about `mean`."""
    rng = np.random.default_rng(seed)
    return [mean + 0.1 * rng.standard_normal() + 0.3 * rng.standard_normal((rows, 1)) for _ in range(clusters)]


def width(estimate: Estimate) -> float:
    return estimate.high - estimate.low


def test_the_estimate_is_the_mean_of_cluster_means_not_of_rows() -> None:
    clusters = [np.array([[0.0, 1.0]]), np.array([[1.0, 1.0], [1.0, 0.0], [1.0, 0.5]])]
    first, second = cluster_bootstrap(clusters, 50, seed=0)
    assert (first.mean, second.mean) == (0.5, 0.75)


def test_booleans_are_counted_as_shares() -> None:
    (estimate,) = cluster_bootstrap([np.array([[True], [False], [False], [False]])], 200, seed=0)
    assert estimate.mean == 0.25
    assert 0 <= estimate.low < 0.25 < estimate.high <= 1


def test_the_interval_covers_a_planted_mean_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(80):
        (estimate,) = cluster_bootstrap(planted(20, 25, seed), 200, seed)
        covered += estimate.low <= 0.3 <= estimate.high
    assert 0.85 <= covered / 80 <= 1.0


def test_clusters_are_resampled_and_rows_within_them() -> None:
    between = [np.full((50, 1), value) for value in (0.0, 1.0)]  # all variance between clusters
    within = [np.array([[0.0], [1.0]] * 25)]  # all within
    assert width(cluster_bootstrap(between, 400, 0)[0]) == pytest.approx(1.0)
    assert width(cluster_bootstrap(within, 400, 0)[0]) == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(50), rel=0.2)


def test_sixteen_times_the_clusters_make_a_quarter_of_the_interval() -> None:
    few = planted(5, 25, seed=1)
    wide, narrow = (width(cluster_bootstrap(clusters, 400, 0)[0]) for clusters in (few, few * 16))
    assert narrow == pytest.approx(wide / 4, rel=0.2)


def test_columns_are_resampled_together() -> None:
    clusters = [np.hstack([cluster, 1 - cluster]) for cluster in planted(6, 10, seed=2)]
    first, complement = cluster_bootstrap(clusters, 300, 0)
    assert (complement.low, complement.high) == pytest.approx((1 - first.high, 1 - first.low))


def test_the_seed_alone_decides() -> None:
    clusters = planted(5, 10, seed=3)
    assert cluster_bootstrap(clusters, 100, 0) == cluster_bootstrap(clusters, 100, 0)
    assert cluster_bootstrap(clusters, 100, 0) != cluster_bootstrap(clusters, 100, 1)


@pytest.mark.parametrize("clusters", [[], [np.ones((3, 1)), np.empty((0, 1))]])
def test_empty_clusters_are_refused(clusters: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="none may be empty"):
        cluster_bootstrap(clusters, 10, 0)

"""The statistics, against slow rivals written here and on planted answers."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from feature_survival.stats import (
    Estimate,
    auc,
    bootstrap_delta,
    cluster_bootstrap,
    cluster_replicates,
    holm,
    logistic,
    mann_whitney,
    spearman,
)

FEW = st.lists(st.integers(0, 5), min_size=1, max_size=12).map(np.array)  # small integers: many ties


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


def test_streams_share_the_drawn_clusters_but_not_the_drawn_rows() -> None:
    between, within = [np.full((50, 1), value) for value in (0.0, 1.0, 3.0)], planted(3, 50, seed=4)
    assert np.array_equal(*(cluster_replicates(between, 200, 0, stream) for stream in (0, 1)))
    first, second = (cluster_replicates(within, 200, 0, stream) for stream in (0, 1))
    assert not np.isclose(first, second).any()


@pytest.mark.parametrize("clusters", [[], [np.ones((3, 1)), np.empty((0, 1))]])
def test_empty_clusters_are_refused(clusters: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="none may be empty"):
        cluster_bootstrap(clusters, 10, 0)


def pairs_won(x: np.ndarray, y: np.ndarray) -> float:
    """P(x > y) + P(x = y) / 2, pair by pair."""
    return sum((a > b) + (a == b) / 2 for a in x for b in y) / (len(x) * len(y))


def ranks(x: np.ndarray) -> list[float]:
    """From 1, tied values sharing their mean rank."""
    return [sum(other < value for other in x) + (sum(other == value for other in x) + 1) / 2 for value in x]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=15))
def test_spearman_is_pearson_of_ranks_and_nan_where_either_is_constant(points: list[tuple[int, int]]) -> None:
    x, y = np.array(points).T
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert np.isnan(spearman(x, y))
    else:
        assert spearman(x, y) == pytest.approx(np.corrcoef(ranks(x), ranks(y))[0, 1])


def test_spearman_takes_booleans_and_is_positive_where_the_true_have_the_larger_values() -> None:
    effect = np.array([1.0, 2, 3, 4])
    assert spearman(effect, np.array([False, False, True, True])) == pytest.approx(2 / np.sqrt(5))
    assert spearman(effect, np.array([True, True, False, False])) == pytest.approx(-2 / np.sqrt(5))


@given(FEW, FEW)
def test_auc_is_the_share_of_pairs_won(x: np.ndarray, y: np.ndarray) -> None:
    assert auc(x, y) == pytest.approx(pairs_won(x, y))
    assert auc(y, x) == pytest.approx(1 - auc(x, y))


def test_auc_is_one_where_the_first_group_lies_above_and_nan_without_a_group() -> None:
    high, low, none = np.array([3.0, 4]), np.array([1.0, 2]), np.array([])
    assert (auc(high, low), auc(low, high), auc(high, high)) == (1, 0, 0.5)
    assert np.isnan([auc(none, low), auc(high, none)]).all()


@settings(max_examples=40)
@given(st.lists(st.tuples(FEW, FEW), min_size=1, max_size=4))
def test_delta_is_the_mean_over_clusters_of_twice_the_auc_less_one(groups: list[tuple[np.ndarray, np.ndarray]]) -> None:
    found = bootstrap_delta(groups, 20, seed=0)
    assert found.mean == pytest.approx(np.mean([2 * pairs_won(x, y) - 1 for x, y in groups]))
    assert -1 <= found.low <= found.high <= 1


def test_delta_is_positive_where_the_first_groups_are_larger() -> None:
    apart = [(np.array([5.0, 6, 7]), np.array([1.0, 2]))]
    assert bootstrap_delta(apart, 50, seed=0) == (1, 1, 1)
    assert bootstrap_delta([(y, x) for x, y in apart], 50, seed=0) == (-1, -1, -1)


def drawn_groups(
    clusters: int, shift: float, scatter: float = 0.0, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Clusters of 30 and 20 normal values; the first group higher by about `shift`, which differs between clusters."""
    rng = np.random.default_rng(seed)
    shifts = shift + scatter * rng.standard_normal(clusters)
    return [(here + rng.standard_normal(30), rng.standard_normal(20)) for here in shifts]


def delta_by_loop(groups: list[tuple[np.ndarray, np.ndarray]], samples: int, seed: int) -> np.ndarray:
    """Replicates of the mean delta: clusters with replacement, then rows anew in each drawn one."""
    rng = np.random.default_rng(seed)
    replicates = []
    for _ in range(samples):
        deltas = []
        for number in rng.integers(len(groups), size=len(groups)):
            x, y = (rng.choice(group, size=len(group)) for group in groups[number])
            deltas.append(np.sign(x[:, None] - y).mean())
        replicates.append(np.mean(deltas))
    return np.array(replicates)


@pytest.mark.parametrize(
    "groups",
    [drawn_groups(1, 0.5), drawn_groups(5, 0.5, scatter=1.0), 4 * drawn_groups(1, 0.5)],
    ids=["one cluster", "unlike clusters", "like clusters"],
)
def test_the_interval_of_delta_is_as_wide_as_that_of_a_loop(groups: list[tuple[np.ndarray, np.ndarray]]) -> None:
    low, high = np.percentile(delta_by_loop(groups, 3000, seed=1), [2.5, 97.5])
    assert width(bootstrap_delta(groups, 3000, seed=0)) == pytest.approx(high - low, rel=0.12)


def test_the_interval_of_delta_covers_zero_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(60):
        found = bootstrap_delta(drawn_groups(1, 0.0, seed=seed), 200, seed)
        covered += found.low <= 0 <= found.high
    assert 50 <= covered <= 60  # nominally 57


def test_the_seed_alone_decides_the_interval_of_delta() -> None:
    groups = drawn_groups(3, 0.5)
    assert bootstrap_delta(groups, 100, 0) == bootstrap_delta(groups, 100, 0)
    assert bootstrap_delta(groups, 100, 0) != bootstrap_delta(groups, 100, 1)


@pytest.mark.parametrize("shift", [0.0, 1.0, -2.0])
def test_mann_whitney_is_two_sided_and_counts_every_split_of_a_small_sample(shift: float) -> None:
    rng = np.random.default_rng(0)
    x, y = shift + rng.standard_normal(4), rng.standard_normal(5)
    values, seen = np.concatenate([x, y]), abs(pairs_won(x, y) - 0.5)
    splits = [list(split) for split in combinations(range(9), 4)]
    as_far = [abs(pairs_won(values[split], np.delete(values, split)) - 0.5) >= seen - 1e-12 for split in splits]
    assert mann_whitney(x, y) == pytest.approx(np.mean(as_far))
    assert mann_whitney(x, y) == pytest.approx(mann_whitney(y, x))


def test_holm_by_hand_leaves_nans_out_of_the_count() -> None:
    # Of four tests, sorted: .005 x 4, .01 x 3, .03 x 2, .04 x 1; the last may not fall below the one before.
    assert holm(np.array([0.01, 0.04, np.nan, 0.03, 0.005])) == pytest.approx(
        [0.03, 0.06, np.nan, 0.06, 0.02], nan_ok=True
    )
    assert holm(np.array([0.6, 0.9])) == pytest.approx([1, 1])
    assert np.isnan(holm(np.array([np.nan, np.nan]))).all()


@settings(max_examples=20, deadline=None)  # statsmodels collects garbage on every call
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_and_keeps_the_order(p: list[float]) -> None:
    values, corrected = np.array(p), holm(np.array(p))
    assert (corrected >= values).all() and (corrected <= 1).all()
    assert (np.diff(corrected[np.argsort(values, kind="stable")]) >= 0).all()


def standard(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Normal columns of exactly mean 0 and standard deviation 1."""
    x = np.random.default_rng(seed).standard_normal((rows, columns))
    return (x - x.mean(axis=0)) / x.std(axis=0)


def test_logistic_recovers_planted_coefficients() -> None:
    coefficients, x = np.array([1.2, -0.7, 0.0]), standard(4000, 3)
    y = (np.random.default_rng(2).random(4000) < 1 / (1 + np.exp(-(0.5 + x @ coefficients)))).astype(float)
    found = logistic(x, y)
    assert found.coefficients == pytest.approx(coefficients, abs=0.12)
    assert (found.low < coefficients).all() and (coefficients < found.high).all()
    assert (found.p[:2] < 1e-20).all() and found.p[2] > 0.05


@pytest.mark.parametrize("levels", [1, 3], ids=["0 or 1", "thirds"])
def test_logistic_is_the_maximum_of_the_likelihood(levels: int) -> None:
    x = standard(150, 2)
    y = np.random.default_rng(1).binomial(levels, 1 / (1 + np.exp(-x[:, 0]))) / levels
    design = np.column_stack([np.ones(len(x)), x])

    def loss(beta: np.ndarray) -> float:
        return float(np.sum(np.logaddexp(0, design @ beta) - y * (design @ beta)))

    best = minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-7}).x
    chance = 1 / (1 + np.exp(-design @ best))
    errors = np.sqrt(np.diag(np.linalg.inv(design.T @ (design * (chance * (1 - chance))[:, None]))))[1:]
    found = logistic(x, y)
    assert found.coefficients == pytest.approx(best[1:], abs=1e-4)
    assert found.low == pytest.approx(best[1:] - 1.96 * errors, abs=1e-3)
    assert found.high == pytest.approx(best[1:] + 1.96 * errors, abs=1e-3)


@pytest.mark.parametrize("rows", [10, 200, 2000])
def test_logistic_is_nan_where_the_outcome_can_be_told_without_error(rows: int) -> None:
    x = standard(rows, 2, seed=2)
    for y in ((x @ [1, 0.5] > 0.2).astype(float), np.zeros(rows), np.ones(rows)):
        found = logistic(x, y)
        assert np.isnan([found.coefficients, found.low, found.high, found.p]).all()

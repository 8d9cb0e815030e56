import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from feature_survival.metrics.fragility import BINS, Cluster, exact_spearman, measure_fragility, quintiles


def planted(shares, size=40, seed=0):
    """An SAE whose quintile q has exactly `shares[q]` survivors among `size` features, shuffled."""
    rng = np.random.default_rng(seed)
    rate = np.arange(BINS * size, dtype=float)
    survived = np.concatenate([np.arange(size) < round(share * size) for share in shares])
    order = rng.permutation(len(rate))
    return Cluster(rate[order], survived[order])


@given(st.lists(st.floats(0, 1), min_size=BINS, max_size=200))
def test_quintiles_hold_equal_counts_and_follow_the_values(values):
    values = np.array(values)
    bins = quintiles(values)
    counts = np.bincount(bins, minlength=BINS)
    assert counts.max() - counts.min() <= 1
    for lower in range(BINS - 1):
        assert values[bins == lower].max() <= values[bins == lower + 1].min()


def test_a_falling_order_of_five_bins_has_rho_minus_one_and_p_one_sixtieth():
    assert exact_spearman(np.array([5.0, 4, 3, 2, 1])) == pytest.approx((-1.0, 1 / 60))


def test_exact_p_agrees_with_the_asymptotic_one_for_seven_points():
    y = np.array([2.0, 1, 4, 3, 7, 5, 6])
    rho, p = exact_spearman(y)
    asymptotic = spearmanr(np.arange(7), y)
    assert rho == pytest.approx(asymptotic.statistic)
    assert p == pytest.approx(asymptotic.pvalue, abs=0.02)


def test_a_constant_survival_has_no_trend():
    assert np.isnan(exact_spearman(np.ones(5))).all()
    found = measure_fragility([planted([1.0] * 5), planted([1.0] * 5, seed=1)], samples=50, seed=0)
    assert np.isnan([found.rho_bins, found.p_bins, found.rho_features]).all()
    assert found.gap == (0.0, 0.0, 0.0)


def test_planted_survival_by_quintile_is_read_back_exactly():
    shares = [0.9, 0.7, 0.5, 0.3, 0.1]
    found = measure_fragility([planted(shares), planted(shares, seed=1)], samples=500, seed=0)
    assert [estimate.mean for estimate in found.quintiles] == pytest.approx(shares)
    assert found.gap.mean == pytest.approx(0.8)
    assert found.gap.low > 0.6 and found.gap.high < 0.95
    assert (found.rho_bins, found.p_bins) == pytest.approx((-1.0, 1 / 60))
    assert found.rho_features < -0.4


def test_the_gap_of_survival_that_ignores_firing_rate_covers_zero():
    covered = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        clusters = [Cluster(rng.random(300), rng.random(300) < 0.4) for _ in range(2)]
        gap = measure_fragility(clusters, samples=200, seed=seed).gap
        covered += gap.low <= 0 <= gap.high
    assert covered >= 34  # of 40, nominally 38


def test_too_few_alive_features_are_refused():
    with pytest.raises(ValueError, match="at least 5 alive features"):
        measure_fragility([Cluster(np.arange(4.0), np.ones(4, dtype=bool))], samples=10, seed=0)

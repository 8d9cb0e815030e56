"""RQ4 on planted clusters: trends along quintiles, the shared start, what foretells survival."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from feature_survival.metrics.fragility import (
    Cluster,
    exact_spearman,
    measure_confound,
    measure_predictors,
    measure_trend,
)
from feature_survival.metrics.quintiles import BINS, quintiles

SIZE = 40  # features a quintile


def planted(shares: list[float], seed: int = 0) -> Cluster:
    """An SAE whose quintile q has exactly `shares[q]` survivors, shuffled; its values are 0, 1, 2, ..."""
    values = np.arange(BINS * SIZE, dtype=float)
    survived = np.concatenate([np.arange(SIZE) < round(share * SIZE) for share in shares])
    order = np.random.default_rng(seed).permutation(len(values))
    return Cluster(values[order], survived[order])


@given(st.lists(st.floats(0, 1), min_size=BINS, max_size=200))
def test_quintiles_hold_equal_counts_and_follow_the_values(drawn: list[float]) -> None:
    values = np.array(drawn)
    bins = quintiles(values)
    counts = np.bincount(bins, minlength=BINS)
    assert counts.max() - counts.min() <= 1
    for lower in range(BINS - 1):
        assert values[bins == lower].max() <= values[bins == lower + 1].min()


def test_a_falling_order_of_five_bins_has_rho_minus_one_and_p_one_sixtieth() -> None:
    assert exact_spearman(np.array([5.0, 4, 3, 2, 1])) == pytest.approx((-1.0, 1 / 60))


def test_exact_p_agrees_with_the_asymptotic_one_for_seven_points() -> None:
    y = np.array([2.0, 1, 4, 3, 7, 5, 6])
    rho, p = exact_spearman(y)
    asymptotic = spearmanr(np.arange(7), y)
    assert rho == pytest.approx(asymptotic.statistic)
    assert p == pytest.approx(asymptotic.pvalue, abs=0.02)


def test_a_constant_survival_has_no_trend() -> None:
    assert np.isnan(exact_spearman(np.ones(5))).all()
    found = measure_trend([planted([1.0] * 5), planted([1.0] * 5, seed=1)], samples=50, seed=0)
    assert np.isnan([found.rho_bins, found.p_bins, found.rho_features]).all()
    assert found.gap == (0.0, 0.0, 0.0)


def test_quintiles_that_differ_by_rounding_alone_have_no_trend() -> None:
    shares = [[0.1, 0.2, 0.3, 0.1, 0.2], [0.2, 0.3, 0.1, 0.3, 0.1], [0.3, 0.1, 0.2, 0.2, 0.3]]  # every quintile: 0.2
    found = measure_trend([planted(of_sae) for of_sae in shares], samples=20, seed=0)
    assert np.isnan([found.rho_bins, found.p_bins]).all()


@pytest.mark.parametrize("sign", [-1, 1])
def test_planted_survival_by_quintile_is_read_back_exactly(sign: int) -> None:
    shares = [0.9, 0.7, 0.5, 0.3, 0.1][::-sign]
    found = measure_trend([planted(shares), planted(shares, seed=1)], samples=500, seed=0)
    assert [estimate.mean for estimate in found.quintiles] == pytest.approx(shares)
    assert all(low <= mean <= high for mean, low, high in found.quintiles)
    assert found.gap.mean == pytest.approx(-0.8 * sign)
    assert 0.6 < min(abs(found.gap.low), abs(found.gap.high)) < max(abs(found.gap.low), abs(found.gap.high)) < 0.95
    assert (found.rho_bins, found.p_bins) == pytest.approx((sign, 1 / 60))
    assert sign * found.rho_features > 0.4


def test_the_values_are_averaged_by_quintile_within_each_sae() -> None:
    first, second = planted([0.5] * 5), planted([0.5] * 5, seed=1)
    found = measure_trend([first, Cluster(second.values + 1000, second.survived)], samples=10, seed=0)
    assert found.means == pytest.approx([500 + 19.5 + SIZE * number for number in range(BINS)])


def test_a_feature_found_in_half_of_its_saes_counts_half() -> None:
    values, whole = planted([0.8, 0.6, 0.4, 0.2, 0.0])
    found = measure_trend([Cluster(values, whole / 2)], samples=50, seed=0)
    assert [estimate.mean for estimate in found.quintiles] == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0])


def test_the_gap_of_survival_that_ignores_firing_rate_covers_zero() -> None:
    covered = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        clusters = [Cluster(rng.random(300), rng.random(300) < 0.4) for _ in range(2)]
        gap = measure_trend(clusters, samples=200, seed=seed).gap
        covered += gap.low <= 0 <= gap.high
    assert covered >= 34  # of 40, nominally 38


def test_what_saes_survive_on_the_whole_is_no_part_of_the_gap() -> None:
    found = measure_trend([planted([level] * 5, seed) for seed, level in enumerate((0.0, 1.0, 0.0, 1.0))], 200, seed=0)
    assert found.quintiles[0].high - found.quintiles[0].low > 0.7
    assert found.gap == (0, 0, 0)


def test_too_few_alive_features_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 5 alive features"):
        measure_trend([Cluster(np.arange(4.0), np.ones(4, dtype=bool))], samples=10, seed=0)
    with pytest.raises(ValueError, match="at least 5 alive features"):
        measure_confound([np.arange(4.0)], [np.ones((4, 2))], samples=10, seed=0)


def paired(same: list[float], other: list[float], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Displacement of features; survival in SAEs of the same and of another start, shares by quintile of it."""
    displacement, of_same = planted(same, seed)
    return displacement, np.column_stack([of_same, planted(other, seed).survived])


def test_the_confound_is_the_difference_of_two_gaps_by_hand() -> None:
    first = paired([1.0, 0.5, 0.5, 0.5, 0.4], [0.1, 0.5, 0.5, 0.5, 0.3])  # .6 - (-.2)
    second = paired([0.9, 0.0, 1.0, 0.0, 0.5], [0.3, 1.0, 0.0, 1.0, 0.1], seed=1)  # .4 - .2
    found = measure_confound(*zip(first, second, strict=True), samples=200, seed=0)
    assert found.mean == pytest.approx((0.8 + 0.2) / 2)
    assert found.low < found.mean < found.high


def test_features_that_survive_by_not_moving_are_a_confound() -> None:
    saes = [paired([0.9, 0.8, 0.7, 0.6, 0.5], [0.1, 0.2, 0.3, 0.4, 0.5], seed) for seed in range(3)]
    found = measure_confound(*zip(*saes, strict=True), samples=500, seed=0)
    assert found.mean == pytest.approx(0.8)
    assert 0.5 < found.low < found.high < 1.1


def test_features_that_survive_less_from_a_shared_start_are_a_negative_confound() -> None:
    saes = [paired([0.1, 0.2, 0.3, 0.4, 0.5], [0.9, 0.8, 0.7, 0.6, 0.5], seed) for seed in range(3)]
    assert measure_confound(*zip(*saes, strict=True), samples=500, seed=0).high < 0


@pytest.mark.parametrize("slope", [0.0, 0.8], ids=["survival ignores displacement", "survival follows displacement"])
def test_survival_that_is_alike_from_any_start_is_no_confound(slope: float) -> None:
    covered = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        displacement = [rng.random(300) for _ in range(2)]
        survived = [rng.random((300, 2)) < 0.1 + slope * moved[:, None] for moved in displacement]
        found = measure_confound(displacement, survived, samples=200, seed=seed)
        covered += found.low <= 0 <= found.high
    assert covered >= 34  # of 40, nominally 38


def test_both_survivals_of_a_feature_are_resampled_together() -> None:
    displacement, survived = planted([0.9, 0.7, 0.5, 0.3, 0.1])
    found = measure_confound([displacement], [np.column_stack([survived, survived])], samples=100, seed=0)
    assert found == pytest.approx((0, 0, 0))


def predicted(saes: int, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Four predictors: log odds of survival 2x the first (in units of 1000) and -.5x the second; noise; a constant."""
    rng = np.random.default_rng(seed)
    drawn = [rng.standard_normal((500, 3)) for _ in range(saes)]
    odds = [2 * x[:, 0] - 0.5 * x[:, 1] for x in drawn]
    predictors = [np.column_stack([1000 * x[:, :1], x[:, 1:], np.full(500, 0.1)]) for x in drawn]
    return predictors, [(rng.random(500) < 1 / (1 + np.exp(-of_sae))).astype(float) for of_sae in odds]


def test_the_planted_predictor_has_the_largest_coefficient_and_auc() -> None:
    found = measure_predictors(*predicted(saes=4))
    strong, weak, noise = found.coefficients[:3]
    assert strong.mean == pytest.approx(2, abs=0.25) and strong.low > 1.5
    assert weak.mean == pytest.approx(-0.5, abs=0.2) and weak.high < 0
    assert noise.low < 0 < noise.high
    assert found.p[0] < found.p[1] < 0.001 and found.p[2] > 0.05
    assert found.auc[0] > 0.8 and 0.3 < found.auc[1] < 0.48 and abs(found.auc[2] - 0.5) < 0.05
    assert found.auc_all > found.auc[0] - 0.01


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
def test_a_constant_predictor_has_no_coefficient_and_tells_nothing(value: float) -> None:
    predictors, survived = predicted(saes=2)
    for x in predictors:
        x[:, 3] = value
    found = measure_predictors(predictors, survived)
    assert np.isnan([*found.coefficients[3], found.p[3]]).all()
    assert found.auc[3] == 0.5
    without = measure_predictors([x[:, :3] for x in predictors], survived)
    assert np.ravel(found.coefficients[:3]) == pytest.approx(np.ravel(without.coefficients))
    assert found.auc_all == pytest.approx(without.auc_all)


def test_the_auc_of_the_regression_is_that_of_an_sae_it_never_saw() -> None:
    rng = np.random.default_rng(0)
    noise = [rng.standard_normal((60, 15)) for _ in range(8)]
    survived = [(rng.random(60) < 0.5).astype(float) for _ in range(8)]
    assert abs(measure_predictors(noise, survived).auc_all - 0.5) < 0.07  # fitted and tested on all: well above
    predictors, told = predicted(saes=2)
    opposite = measure_predictors([predictors[0], -predictors[1]], told)  # what holds in one is wrong in the other
    assert opposite.auc_all == pytest.approx(1 - measure_predictors(predictors, told).auc_all, abs=0.02)


def test_a_single_sae_has_no_other_to_test_the_regression_on() -> None:
    found = measure_predictors(*predicted(saes=1))
    assert np.isnan(found.auc_all)
    assert found.coefficients[0].low > 0 and found.auc[0] > 0.8


def test_a_survivor_is_found_in_half_of_its_saes_or_more() -> None:
    survived = np.array([0.0, 0.25, 0.5, 1.0, 0.25, 0.5])
    predictor = np.array([1.0, 2, 3, 4, 3, 2])
    # survivors 3, 4, 2 against casualties 1, 2, 3: of nine pairs six and two halves
    assert measure_predictors([predictor[:, None]], [survived]).auc[0] == pytest.approx(7 / 9)

"""RQ5: effects of survivors against casualties, at equal firing rates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_survival.metrics.quintiles import BINS, quintiles
from feature_survival.metrics.relevance import Features, balanced, measure_relevance


def planted(shift: float, seed: int = 0, size: int = 200) -> Features:
    """An SAE half of whose features survive; survivors' effects are higher by `shift` standard deviations."""
    rng = np.random.default_rng(seed)
    survived = rng.random(size) < 0.5
    return Features(rng.random(size), rng.standard_normal(size) + shift * survived, survived)


def rarity_alone(seed: int) -> Features:
    """Rare features survive and have large effects; among features of one rate the two have nothing in common."""
    rng = np.random.default_rng(seed)
    rate = rng.random(600)
    step = quintiles(rate) / (BINS - 1)
    return Features(rate, rng.standard_normal(600) - 3 * step, rng.random(600) < 0.9 - 0.8 * step)


@st.composite
def features(draw: st.DrawFn) -> Features:
    """Any rates and survival; a feature's effect is its number, so that it is known again."""
    rows = draw(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
    rate, survived = (np.array(column) for column in zip(*rows, strict=True))
    return Features(rate, np.arange(len(rate), dtype=float), survived)


@settings(deadline=None)
@given(features(), st.integers(0, 9))
def test_a_balanced_sample_has_as_many_of_both_in_every_quintile_and_no_more_could_be(sae: Features, seed: int) -> None:
    sample = balanced(sae, seed)
    chosen = sample.effect.astype(int)
    of = quintiles(sae.firing_rate)
    for number in range(BINS):
        survivors, casualties = (((of == number) & (sae.survived == found)).sum() for found in (True, False))
        taken = sample.survived[of[chosen] == number]
        assert taken.sum() == (~taken).sum() == min(survivors, casualties)


@settings(deadline=None)
@given(features(), st.integers(0, 9))
def test_a_balanced_sample_is_a_subset_with_its_rows_intact_and_the_seeds(sae: Features, seed: int) -> None:
    sample, again = balanced(sae, seed), balanced(sae, seed)
    chosen = sample.effect.astype(int)
    assert len(set(chosen)) == len(chosen)
    for column, whole, repeated in zip(sample, sae, again, strict=True):
        assert np.array_equal(column, whole[chosen])
        assert np.array_equal(column, repeated)


def test_another_seed_draws_another_sample() -> None:
    sae = Features(np.arange(50.0), np.arange(50.0), np.arange(50) % 5 == 0)
    samples = [balanced(sae, seed) for seed in (0, 1)]
    assert all(len(sample.effect) == 20 for sample in samples)
    assert not np.array_equal(samples[0].effect, samples[1].effect)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_planted_difference_of_effects_is_found_with_its_sign(sign: int) -> None:
    found = measure_relevance([planted(sign * 1.0, seed) for seed in range(3)], samples=500, seed=0)
    assert found is not None
    assert found.delta.mean == pytest.approx(sign * 0.52, abs=0.12)  # P(z > -1 / sqrt 2) = .76
    assert min(sign * found.delta.low, sign * found.delta.high) > 0
    assert sign * found.rho > 0.3
    assert found.p < 1e-6


def test_effects_that_do_not_differ_give_intervals_that_cover_zero() -> None:
    covered, significant = 0, 0
    for seed in range(40):
        found = measure_relevance([planted(0.0, seed), planted(0.0, seed + 100)], samples=200, seed=seed)
        assert found is not None
        covered += found.delta.low <= 0 <= found.delta.high
        significant += found.p < 0.05
    assert covered >= 34  # of 40, nominally 38
    assert significant <= 6  # nominally 2


def test_a_difference_that_is_rarity_alone_is_balanced_away() -> None:
    sae = rarity_alone(seed=0)
    assert np.corrcoef(sae.effect, sae.survived)[0, 1] > 0.3
    found = measure_relevance([sae, rarity_alone(seed=1)], samples=500, seed=0)
    assert found is not None
    assert found.delta.low < 0 < found.delta.high
    assert abs(found.rho) < 0.15


def test_survivors_and_casualties_are_listed_apart() -> None:
    rate = np.arange(10.0)
    first = Features(rate, np.where(rate % 2 == 0, 10.0, 1.0), rate % 2 == 0)
    second = Features(rate, np.where(rate % 2 == 0, 20.0, 2.0), rate % 2 == 0)
    found = measure_relevance([first, second], samples=20, seed=0)
    assert found is not None
    assert sorted(found.survivors) == [10.0] * 5 + [20.0] * 5
    assert sorted(found.casualties) == [1.0] * 5 + [2.0] * 5
    assert found.delta == (1, 1, 1)
    assert found.rho == pytest.approx(1)


def test_nothing_is_measured_where_nothing_can_be_balanced() -> None:
    rate = np.arange(10.0)
    all_survive = Features(rate, rate, np.ones(10, dtype=bool))
    in_different_quintiles = Features(rate, rate, rate < 4)
    assert measure_relevance([all_survive, in_different_quintiles], samples=20, seed=0) is None
    assert measure_relevance([], samples=20, seed=0) is None
    with_another = measure_relevance([all_survive, planted(1.0)], samples=20, seed=0)
    alone = measure_relevance([planted(1.0)], samples=20, seed=0)
    assert with_another is not None and alone is not None
    assert (with_another.delta, with_another.rho) == (alone.delta, alone.rho)

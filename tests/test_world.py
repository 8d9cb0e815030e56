"""A world in which the answers are known: planted features, of which some are lost and some never learned.

A planted feature is a unit direction with a firing rate (Zipf). A planted SAE holds each of them once, in an order and
from starting weights that its initialisation decides. Every question of study A is asked here, and must get the answer
that was planted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sae_lens.synthetic import ActivationGenerator, FeatureDictionary, zipfian_firing_probabilities
from torch import Tensor

from feature_survival.matching import mutual_cosine, random_dictionary
from feature_survival.metrics.fragility import Cluster, Trend, measure_confound, measure_trend
from feature_survival.metrics.quintiles import BINS
from feature_survival.metrics.transfer import Transfer, measure_transfer
from feature_survival.sae import Dictionary
from feature_survival.thresholds import DAMAGED, KEPT

WIDTH, FEATURES, TAU = 64, 320, 0.7
TRUTH = FeatureDictionary(FEATURES, WIDTH, initializer=None, seed=0).feature_vectors.detach()  # most frequent first
RATE = zipfian_firing_probabilities(FEATURES, max_prob=0.3, min_prob=0.0005)
RATE_OF_FEW = zipfian_firing_probabilities(WIDTH, max_prob=0.3, min_prob=0.004)
RARE, FREQUENT = [0.9, 0.7, 0.5, 0.3, 0.1], [0.1, 0.3, 0.5, 0.7, 0.9]  # shares of quintiles, rarest first: what is lost
NOTHING = torch.zeros(FEATURES, dtype=torch.bool)


class Sae(NamedTuple):
    """A planted SAE; what follows is by row."""

    decoder: Tensor  # [FEATURES, WIDTH]
    start: Tensor  # the decoder it was initialised with
    holds: Tensor  # int64 [FEATURES]: the planted feature that the row is for

    @property
    def rate(self) -> np.ndarray:
        return RATE[self.holds].numpy()

    @property
    def displacement(self) -> np.ndarray:
        return 1 - F.cosine_similarity(self.decoder, self.start, dim=1).numpy()


def planted_sae(
    init: int, run: int, lost: Tensor = NOTHING, stuck: Tensor = NOTHING, near: Tensor | None = None
) -> Sae:
    """`lost` features are random directions instead, `stuck` ones have not left their start; bool by planted feature.

    init: decides starting weights and order, run: the noise. near: [FEATURES] cosine of starts to the features, roughly
    (a start is a random direction without it).
    """
    generator = torch.Generator().manual_seed(init)
    holds = torch.randperm(FEATURES, generator=generator)
    start = random_dictionary(FEATURES, WIDTH, seed=1000 + init)
    if near is not None:
        cosine = near[holds, None]
        start = F.normalize(cosine * TRUTH[holds] + (1 - cosine**2).sqrt() * start, dim=1)
    noise = random_dictionary(FEATURES, WIDTH, seed=2000 + run)
    learned = F.normalize(TRUTH[holds] + 0.3 * noise, dim=1)  # two runs: cosine about .92
    decoder = torch.where(lost[holds, None], random_dictionary(FEATURES, WIDTH, seed=3000 + run), learned)
    return Sae(torch.where(stuck[holds, None], start, decoder), start, holds)


def some(shares: list[float], seed: int = 0, features: int = FEATURES) -> Tensor:
    """Planted features at random, bool: exactly these shares of the quintiles of firing rate, rarest first."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(features, dtype=torch.bool)
    for quintile, share in zip(torch.arange(features).flip(0).tensor_split(BINS), shares, strict=True):
        order = torch.randperm(len(quintile), generator=generator)
        chosen[quintile[order[: round(share * len(quintile))]]] = True
    return chosen


def found_again(sae: Sae, other: Sae) -> np.ndarray:
    """Bool by row of the first SAE: its feature survives in the other one."""
    return (mutual_cosine(sae.decoder, other.decoder) >= TAU).numpy()


def assert_found(flagged: Tensor, planted: Tensor) -> None:
    """Precision and recall of finding a planted set of features."""
    hits = (flagged & planted).sum().item()
    assert hits / max(flagged.sum().item(), 1) >= 0.95, "precision"
    assert hits / planted.sum().item() >= 0.95, "recall"


@pytest.mark.parametrize("shares", [RARE, FREQUENT, [0.05] * 5, [0.95] * 5], ids=["rare", "frequent", "few", "most"])
@pytest.mark.parametrize("other_init", [0, 1], ids=["same init", "other init"])
def test_lost_features_are_found_by_mutual_nearest_neighbours(shares: list[float], other_init: int) -> None:
    lost = some(shares)
    sae = planted_sae(init=0, run=0)
    survived = torch.from_numpy(found_again(sae, planted_sae(init=other_init, run=1, lost=lost)))
    assert_found(~survived, lost[sae.holds])
    assert_found(survived, ~lost[sae.holds])


def transferred(lost: Tensor, damage: str) -> Transfer:
    """The dense model's SAE, exact on its WIDTH orthogonal features, on tokens of both models.

    In the compressed model the lost features are missing, or fire on other tokens than they did; and there is noise.
    """
    few = FeatureDictionary(WIDTH, WIDTH, initializer=None, seed=1)
    few.feature_vectors.data = torch.linalg.qr(few.feature_vectors.detach())[0]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        fires = ActivationGenerator(WIDTH, RATE_OF_FEW, std_firing_magnitudes=0.2).sample(40_000)
        shuffled = torch.stack([column[torch.randperm(len(column))] for column in fires.T], dim=1)
        dense = few(fires)
        compressed = few(torch.where(lost, 0.0 if damage == "missing" else shuffled, fires))
        compressed += 0.03 * torch.randn(compressed.shape)
    directions = few.feature_vectors.detach()
    sae = Dictionary(directions.T, torch.full((WIDTH,), -0.1), directions, torch.zeros(WIDTH), k=16)
    return measure_transfer(sae, dense.split(15_000), compressed.split(15_000))


@pytest.mark.parametrize("damage", ["missing", "scrambled"])
@pytest.mark.parametrize("shares", [RARE, FREQUENT, [0.1] * 5], ids=["rare", "frequent", "few"])
def test_lost_features_are_found_by_the_fixed_dictionary(shares: list[float], damage: str) -> None:
    lost = some(shares, features=WIDTH)
    correlation = transferred(lost, damage).correlation
    assert_found(correlation < DAMAGED, lost)
    assert_found(correlation > KEPT, ~lost)
    assert correlation[lost].abs().max() < 0.1  # however often it fires: the means are taken off


def test_the_fixed_dictionary_sees_nothing_lost_where_nothing_is() -> None:
    found = transferred(torch.zeros(WIDTH, dtype=torch.bool), "missing")
    assert (found.correlation > KEPT).all()
    assert found.jaccard > 0.95
    assert found.dense.firing_rate.numpy() == pytest.approx(RATE_OF_FEW.numpy(), abs=0.01)


def trend(losses: list[Tensor]) -> Trend:
    """Survival by firing rate; each dense SAE is paired with one of a compressed model that lost its own features."""
    clusters = []
    for init, lost in enumerate(losses):
        sae = planted_sae(init, run=init)
        clusters.append(Cluster(sae.rate, found_again(sae, planted_sae(init, run=100 + init, lost=lost))))
    return measure_trend(clusters, samples=300, seed=0)


def test_where_rare_features_are_lost_survival_rises_with_firing_rate() -> None:
    found = trend([some(RARE, seed) for seed in range(3)])
    assert [quintile.mean for quintile in found.quintiles] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9], abs=0.03)
    assert (found.rho_bins, found.p_bins) == pytest.approx((1, 1 / 60))
    assert found.rho_features > 0.4
    assert found.gap.mean == pytest.approx(-0.8, abs=0.05) and found.gap.high < -0.6


def test_where_frequent_features_are_lost_survival_falls_with_firing_rate() -> None:
    found = trend([some(FREQUENT, seed) for seed in range(3)])
    assert (found.rho_bins, found.p_bins) == pytest.approx((-1, 1 / 60))
    assert found.rho_features < -0.4
    assert found.gap.mean == pytest.approx(0.8, abs=0.05) and found.gap.low > 0.6


def test_where_loss_ignores_firing_rate_there_is_no_trend() -> None:
    covered, rho = 0, []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        found = trend([torch.rand(FEATURES, generator=generator) < 0.5 for _ in range(2)])
        covered += found.gap.low <= 0 <= found.gap.high
        rho.append(found.rho_features)
    assert covered >= 17  # of 20, nominally 19
    assert abs(np.mean(rho)) < 0.04


@pytest.mark.parametrize(("shares", "rho"), [(RARE, 1), (FREQUENT, -1)], ids=["rare", "frequent"])
def test_the_fixed_dictionary_shows_the_same_fragility(shares: list[float], rho: int) -> None:
    found = transferred(some(shares, features=WIDTH), "scrambled")
    kept = (found.correlation > KEPT).numpy()
    by_rate = measure_trend([Cluster(found.dense.firing_rate.numpy(), kept)], samples=300, seed=0)
    assert by_rate.rho_bins == pytest.approx(rho)
    assert by_rate.gap.mean == pytest.approx(-0.8 * rho, abs=0.1)
    assert max(rho * by_rate.gap.low, rho * by_rate.gap.high) < 0  # of 12 or 13 features a quintile


def pairings(stuck: Tensor, near: Tensor | None = None) -> tuple[list[Sae], list[np.ndarray]]:
    """Three dense SAEs; survival of their features, [FEATURES, 2], with the same and with another initialisation.

    The compressed model lost rarely firing features more often than frequent ones; and every SAE misses some more.
    """
    saes, survived = [], []
    for init in range(3):
        sae = planted_sae(init, run=init, stuck=stuck, near=near)
        partners = []
        for number, other in enumerate((init, (init + 1) % 3)):
            run = 100 + 10 * init + number
            lost = some([0.4, 0.3, 0.2, 0.1, 0.0]) | some([0.2] * 5, seed=run)
            partners.append(found_again(sae, planted_sae(other, run, lost=lost, stuck=stuck, near=near)))
        saes.append(sae)
        survived.append(np.column_stack(partners))
    return saes, survived


def test_rare_features_that_never_moved_survive_with_the_same_start_only() -> None:
    saes, survived = pairings(stuck=some([1.0, 0.75, 0.5, 0.25, 0.0]))
    same, other = (
        measure_trend([Cluster(sae.rate, of[:, column]) for sae, of in zip(saes, survived, strict=True)], 300, seed=0)
        for column in (0, 1)
    )
    assert same.quintiles[0].mean == 1 and same.rho_bins == pytest.approx(-1) and same.gap.low > 0
    assert other.quintiles[0].mean == 0 and other.rho_bins == pytest.approx(1) and other.gap.high < 0


def test_rare_features_that_never_moved_are_found_out_as_a_confound() -> None:
    saes, survived = pairings(stuck=some([1.0, 0.75, 0.5, 0.25, 0.0]))
    found = measure_confound([sae.displacement for sae in saes], survived, samples=300, seed=0)
    assert found.mean == pytest.approx(1, abs=0.15)  # the least moved: 1 and 0; the most moved: alike
    assert found.low > 0.7


def test_where_every_feature_is_learned_from_any_start_there_is_no_confound() -> None:
    saes, survived = pairings(stuck=NOTHING)
    found = measure_confound([sae.displacement for sae in saes], survived, samples=300, seed=0)
    assert found.low < 0 < found.high
    assert found.high - found.low < 0.4


def test_rare_features_that_moved_little_but_are_found_from_any_start_are_no_confound() -> None:
    saes, survived = pairings(stuck=NOTHING, near=torch.linspace(0, 0.9, FEATURES))
    displacement = [sae.displacement for sae in saes]
    assert all(np.corrcoef(moved, sae.rate)[0, 1] > 0.3 for moved, sae in zip(displacement, saes, strict=True))
    for column in (0, 1):  # survival itself does follow displacement, with either start
        clusters = [Cluster(moved, of[:, column]) for moved, of in zip(displacement, survived, strict=True)]
        assert measure_trend(clusters, samples=300, seed=0).gap.high < 0
    found = measure_confound(displacement, survived, samples=300, seed=0)
    assert found.low < 0 < found.high
    assert found.high - found.low < 0.4

"""Metrics: tensors in, numbers out."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from feature_survival.config import Seed, Site
from feature_survival.metrics.language import Splice, mean_cross_entropy, spliced_cross_entropy
from feature_survival.metrics.reconstruction import VarianceSums, alive, measure_reconstruction
from feature_survival.metrics.survival import OTHER_INIT, OTHER_ORDER, SAME_SEEDS, Pair, pairs
from feature_survival.sae import Dictionary

SITE = Site("resid_post", 1)


def fvu(x: Tensor, reconstruction: Tensor, sizes: list[int]) -> float:
    sums = VarianceSums()
    for part, predicted in zip(x.split(sizes), reconstruction.split(sizes), strict=True):
        sums.add(part, predicted)
    return sums.fvu()


def activations(rows: int = 60, offset: float = 0.0) -> Tensor:
    return offset + torch.randn(rows, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_predicting_the_mean_gives_one_and_perfection_zero(offset: float) -> None:
    x = activations(offset=offset).double()
    assert fvu(x, x.mean(0).expand_as(x), [60]) == pytest.approx(1, rel=1e-8)
    assert fvu(x, x, [60]) == 0


@settings(max_examples=40, deadline=None)
@given(cuts=st.sets(st.integers(1, 59)), scale=st.floats(0, 2))
def test_fvu_is_the_same_whatever_the_batches(cuts: set[int], scale: float) -> None:
    edges = [0, *sorted(cuts), 60]
    sizes = [b - a for a, b in pairwise(edges)]
    x = activations(offset=3.0)
    assert fvu(x, scale * x, sizes) == pytest.approx(fvu(x, scale * x, [60]), rel=1e-12)


def test_fvu_is_error_over_variance_by_hand() -> None:
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 6.0]])  # mean (2, 2): squared distances 8, 4, 20
    assert fvu(x, torch.tensor([[0.0, 1.0], [2.0, 0.0], [4.0, 3.0]]), [3]) == pytest.approx(10 / 32)


def test_fvu_of_constant_activations_is_refused() -> None:
    with pytest.raises(ValueError, match="no variance"):
        fvu(torch.ones(4, 5), torch.zeros(4, 5), [4])


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_a_planted_dictionary_is_measured_as_planted(batch: int) -> None:
    planted = Dictionary(torch.eye(4), torch.zeros(4), torch.eye(4), torch.zeros(4), k=2)
    x = torch.tensor([[1.0, 2, 0, 0], [3, 0, 0, 0], [0, 1, 4, 0], [-1, -2, -3, -4]])
    found = measure_reconstruction(planted, x.split(batch))
    assert found.firing_rate.tolist() == [0.5, 0.5, 0.25, 0.0]
    assert found.l0 == 1.25
    assert found.share_dead == 0.25
    centred = x - x.mean(0)
    assert found.fvu == pytest.approx(30 / centred.square().sum().item())  # only the last row is not explained


def test_alive_needs_one_in_a_hundred_thousand_or_ten_firings() -> None:
    firings = torch.tensor([0, 9, 10, 11], dtype=torch.float64)
    assert alive(firings / 1000, 1000).tolist() == [False, False, True, True]
    assert alive(10 * firings / 10_000_000, 10_000_000).tolist() == [False, False, True, True]


def test_splice_score_is_the_share_of_loss_recovered() -> None:
    assert Splice(model=2.0, zero=6.0, sae=3.0).score == 0.75
    assert Splice(model=2.0, zero=6.0, sae=2.0).score == 1
    assert Splice(model=2.0, zero=6.0, sae=6.0).score == 0


DENSE = [Seed(0, 0), Seed(1, 1), Seed(0, 1), Seed(1, 0)]


def test_a_compressed_cell_is_compared_in_three_pairings() -> None:
    found = set(pairs(DENSE, [Seed(0, 0), Seed(1, 1)], is_dense_cell=False))
    assert found == {
        Pair(SAME_SEEDS, Seed(0, 0), Seed(0, 0)),
        Pair(SAME_SEEDS, Seed(1, 1), Seed(1, 1)),
        Pair(OTHER_ORDER, Seed(0, 1), Seed(0, 0)),
        Pair(OTHER_ORDER, Seed(1, 0), Seed(1, 1)),
        Pair(OTHER_INIT, Seed(0, 0), Seed(1, 1)),
        Pair(OTHER_INIT, Seed(1, 1), Seed(0, 0)),
    }


def test_the_dense_cell_compares_no_sae_with_itself() -> None:
    found = list(pairs(DENSE, DENSE, is_dense_cell=True))
    assert len(found) == len(set(found)) == 8
    assert all(pair.dense != pair.compressed for pair in found)
    assert {pair.pairing for pair in found} == {OTHER_ORDER, OTHER_INIT}


@pytest.mark.parametrize("batch", [1, 4, 6])
def test_mean_cross_entropy_is_the_models_own_loss(llama: PreTrainedModel, tokens: Tensor, batch: int) -> None:
    expected = llama(tokens, labels=tokens).loss.item()
    assert mean_cross_entropy(llama, tokens, batch) == pytest.approx(expected, rel=1e-5)


def test_splicing_the_identity_costs_nothing_and_zero_costs_something(model: PreTrainedModel, tokens: Tensor) -> None:
    plain = mean_cross_entropy(model, tokens, 4)
    assert spliced_cross_entropy(model, SITE, torch.clone, tokens, 4) == plain
    assert spliced_cross_entropy(model, SITE, torch.zeros_like, tokens, 4) != plain
    assert mean_cross_entropy(model, tokens, 4) == plain


def test_the_first_position_keeps_its_own_activations(llama: PreTrainedModel, tokens: Tensor) -> None:
    seen = []

    def replace(x: Tensor) -> Tensor:
        seen.append(x.shape)
        return torch.zeros_like(x)

    two_positions = tokens[:, :2]  # the loss reads the first position only
    assert spliced_cross_entropy(llama, SITE, replace, two_positions, 6) == mean_cross_entropy(llama, two_positions, 6)
    assert seen == [(6, 1, 32)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_dictionary_splices_into_a_model_on_the_gpu_as_on_the_cpu(llama: PreTrainedModel, tokens: Tensor) -> None:
    weights = [torch.randn(32, 64), torch.zeros(64), torch.randn(64, 32), torch.zeros(32)]
    on_cpu = spliced_cross_entropy(llama, SITE, Dictionary(*weights, k=4).reconstruct, tokens, 6)
    on_gpu = Dictionary(*(weight.cuda() for weight in weights), k=4)
    assert spliced_cross_entropy(llama.cuda(), SITE, on_gpu.reconstruct, tokens, 6) == pytest.approx(on_cpu, rel=1e-3)

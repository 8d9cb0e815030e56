"""RQ3: one SAE on two models' activations, against numpy on dense code matrices."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from feature_survival.metrics.reconstruction import measure_reconstruction
from feature_survival.metrics.transfer import measure_transfer
from feature_survival.sae import CHUNK, Dictionary

WIDTH, FEATURES, ROWS = 8, 24, 120


def identity(width: int = 4) -> Dictionary:
    """Feature i is coordinate i."""
    return Dictionary(torch.eye(width), torch.zeros(width), torch.eye(width), torch.zeros(width), k=width)


class Case(NamedTuple):
    """An SAE and the activations of the same tokens in two models."""

    sae: Dictionary
    dense: Tensor
    compressed: Tensor


def case(seed: int, noise: float = 0.5, rows: int = ROWS, k: int = 3) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    decoder = F.normalize(draw(FEATURES, WIDTH), dim=1)
    sae = Dictionary(decoder.T + 0.1 * draw(WIDTH, FEATURES), 0.3 * draw(FEATURES) - 0.5, decoder, draw(WIDTH), k)
    dense = draw(rows, WIDTH)
    return Case(sae, dense, dense + noise * draw(rows, WIDTH))


def codes(sae: Dictionary, batches: Sequence[Tensor]) -> np.ndarray:
    """Every feature's activation, float64 [n, d_sae], by sorting rather than by topk and scatter."""
    pre = torch.cat([x @ sae.W_enc + sae.b_enc for x in batches]).double().numpy()
    lowest = np.sort(pre, axis=1)[:, -sae.k, None]
    return np.where(pre >= lowest, pre, 0).clip(min=0)


def correlations(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """np.corrcoef of each pair of columns; 0 where one is constant."""
    return np.array(
        [np.corrcoef(a, b)[0, 1] if np.ptp(a) > 0 and np.ptp(b) > 0 else 0.0 for a, b in zip(u.T, v.T, strict=True)]
    )


def jaccard(u: np.ndarray, v: np.ndarray) -> float:
    """By sets, one token at a time."""
    shares = []
    for a, b in zip(u, v, strict=True):
        first, second = set(np.flatnonzero(a)), set(np.flatnonzero(b))
        shares.append(len(first & second) / len(first | second) if first | second else 1.0)
    return float(np.mean(shares))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), noise=st.floats(0.01, 3), k=st.integers(1, FEATURES))
def test_correlation_and_overlap_are_those_of_the_dense_code_matrices(seed: int, noise: float, k: int) -> None:
    sae, dense, compressed = case(seed, noise, k=k)
    found = measure_transfer(sae, dense.split(50), compressed.split(50))
    u, v = codes(sae, dense.split(50)), codes(sae, compressed.split(50))
    np.testing.assert_allclose(found.correlation.numpy(), correlations(u, v), rtol=0, atol=1e-5)
    assert found.jaccard == pytest.approx(jaccard(u, v), rel=1e-9)


def test_the_planted_case_is_measured_as_planted() -> None:
    """Feature 0 is scaled, 1 turned round, 2 falls silent, 3 wakes up."""
    dense = torch.tensor([[1.0, 1, 2, 0], [2, 3, 1, 0], [3, 2, 0, 0], [0, 0, 0, 0]])
    compressed = torch.tensor([[2.0, 3, 0, 1], [4, 1, 0, 0], [6, 2, 0, 0], [0, 0, 0, 0]])
    found = measure_transfer(identity(), [dense], [compressed])
    turned = np.corrcoef([1, 3, 2, 0], [3, 1, 2, 0])[0, 1]
    np.testing.assert_allclose(found.correlation.numpy(), [1, turned, 0, 0], rtol=0, atol=1e-12)
    assert found.jaccard == pytest.approx((2 / 4 + 2 / 3 + 2 / 2 + 1) / 4)  # the last token activates nothing
    assert found.dense.firing_rate.tolist() == [0.75, 0.75, 0.5, 0]
    assert found.compressed.firing_rate.tolist() == [0.75, 0.75, 0, 0.25]


def test_the_same_activations_correlate_perfectly_and_share_every_active_feature() -> None:
    sae, dense, _ = case(0)
    found = measure_transfer(sae, [dense], [dense.clone()])
    fires = found.dense.firing_rate > 0
    assert fires.sum() > FEATURES / 2
    torch.testing.assert_close(found.correlation, fires.double(), rtol=0, atol=1e-9)
    assert found.jaccard == 1


def test_a_feature_that_falls_silent_has_no_correlation_and_spoils_no_other() -> None:
    sae, dense, compressed = case(1, k=FEATURES)
    silenced = sae._replace(W_enc=torch.cat([torch.zeros(WIDTH, 1), sae.W_enc[:, 1:]], dim=1))
    before = measure_transfer(sae, [dense], [compressed]).correlation
    after = measure_transfer(silenced._replace(b_enc=sae.b_enc.clamp(max=0)), [dense], [compressed]).correlation
    assert before[0] > 0.3
    assert after[0] == 0
    kept = sae.b_enc[1:] <= 0  # of the others, the clamp changed those with a positive bias
    torch.testing.assert_close(after[1:][kept], before[1:][kept], rtol=0, atol=1e-9)


@pytest.mark.parametrize("rows", [4, 1000])
def test_features_that_never_vary_have_no_correlation(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    varying = torch.rand(rows, 50, generator=generator)
    constant = 10 * torch.rand(50, generator=generator).expand(rows, 50)
    expected = torch.zeros(50, dtype=torch.float64)
    expected[49] = 1
    constant = torch.cat([constant[:, :49], varying[:, 49:]], dim=1)
    for dense, compressed in ((constant, constant), (constant, varying), (varying, constant)):
        found = measure_transfer(identity(50), dense.split(300), compressed.split(300)).correlation
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("offset", [10.0, 100.0])
def test_a_feature_far_above_zero_loses_no_precision(offset: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3000, 4, generator=generator) for _ in range(2))
    dense, compressed = offset + 0.1 * x, offset + 0.1 * (x + y)
    found = measure_transfer(identity(), [dense], [compressed])
    expected = correlations(dense.double().numpy(), compressed.double().numpy())
    np.testing.assert_allclose(found.correlation.numpy(), expected, rtol=0, atol=1e-6)
    assert 0.6 < expected.min() < expected.max() < 0.8


@settings(max_examples=25, deadline=None)
@given(cuts=st.sets(st.integers(1, ROWS - 1)))
def test_the_batches_do_not_matter(cuts: set[int]) -> None:
    sae, dense, compressed = case(2)
    sizes = [b - a for a, b in pairwise([0, *sorted(cuts), ROWS])]
    found = measure_transfer(sae, dense.split(sizes), compressed.split(sizes))
    whole = measure_transfer(sae, [dense], [compressed])
    torch.testing.assert_close(found.correlation, whole.correlation, rtol=0, atol=1e-6)
    assert found.jaccard == pytest.approx(whole.jaccard, rel=1e-9)
    assert found.compressed.fvu == pytest.approx(whole.compressed.fvu, rel=1e-6)


def test_a_batch_of_more_tokens_than_are_held_as_dense_rows_is_measured_whole() -> None:
    sae, dense, compressed = case(3, rows=2 * CHUNK + 5)
    found = measure_transfer(sae, [dense], [compressed])
    u, v = codes(sae, [dense]), codes(sae, [compressed])
    np.testing.assert_allclose(found.correlation.numpy(), correlations(u, v), rtol=0, atol=1e-5)
    assert found.jaccard == pytest.approx(jaccard(u, v), rel=1e-9)


def test_each_side_is_reconstructed_as_it_would_be_alone() -> None:
    sae, dense, compressed = case(4)
    found = measure_transfer(sae, dense.split(32), compressed.split(32))
    for side, x in ((found.dense, dense), (found.compressed, compressed)):
        alone = measure_reconstruction(sae, x.split(32))
        torch.testing.assert_close(side, alone, rtol=0, atol=0)


def test_models_with_different_numbers_of_batches_are_not_compared() -> None:
    sae, dense, compressed = case(5)
    with pytest.raises(ValueError, match="shorter"):
        measure_transfer(sae, dense.split(60), compressed[:60].split(60))

"""Low rank: the parameter count, the nearest matrix, the nearest outputs."""

from __future__ import annotations

from decimal import Decimal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from feature_survival.compression.forms import LowRank, read_form
from feature_survival.compression.lowrank import activation_weighted_svd, rank_at, truncated_svd
from feature_survival.compression.quantize import output_error

PROPERTY = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 10**6)
shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))
HALF = 2e-3  # relative, in norm: what two factors in half precision lose


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def anisotropic(tokens: int, width: int, seed: int = 0) -> Tensor:
    """X^T X of inputs that are correlated and of very different sizes."""
    inputs = noise(tokens, width, seed=seed).double() * torch.logspace(1, -1, width).double()
    inputs = inputs @ noise(width, width, seed=seed + 1).double()
    return inputs.T @ inputs


def least(weight: Tensor, gram: Tensor, rank: int) -> float:
    """The smallest output error of that rank: dropped squared singular values of W R, eigenvalues of W G W^T."""
    energies = torch.linalg.eigvalsh(weight.double() @ gram @ weight.double().T).clamp(min=0).flip(0)
    return energies[rank:].sum().item()


def size(weight: Tensor, gram: Tensor) -> float:
    return output_error(weight, torch.zeros_like(weight), gram)


@pytest.mark.parametrize(
    ("rows", "columns", "sparsity", "rank"),
    [(100, 100, 0.5, 25), (100, 100, 0.0, 50), (128, 352, 0.5, 46), (10, 10, 0.2, 4), (7, 5, 0.25, 2), (2, 2, 0.9, 0)],
)
def test_ranks_by_hand(rows: int, columns: int, sparsity: float, rank: int) -> None:
    assert rank_at(rows, columns, sparsity) == rank


def test_sparsities_that_floats_round_still_give_the_whole_rank() -> None:
    assert [rank_at(200, 200, sparsity) for sparsity in (0.42, 0.71, 0.93)] == [58, 29, 7]


@PROPERTY
@given(rows=st.integers(1, 5000), columns=st.integers(1, 5000), thousandths=st.integers(0, 999))
def test_the_rank_is_the_largest_whose_factors_fit(rows: int, columns: int, thousandths: int) -> None:
    rank = rank_at(rows, columns, thousandths / 1000)
    room = (1 - Decimal(thousandths) / 1000) * rows * columns
    assert rank * (rows + columns) <= room < (rank + 1) * (rows + columns)


@PROPERTY
@given(shape=shapes, seed=seeds, data=st.data())
def test_the_error_of_truncation_is_the_sum_of_the_dropped_squares(
    shape: tuple[int, int], seed: int, data: st.DataObject
) -> None:
    weight, rank = noise(*shape, seed=seed), data.draw(st.integers(1, min(shape)))
    found = truncated_svd(weight, rank).rebuild(weight)
    dropped = torch.linalg.svdvals(weight.double())[rank:].square().sum().sqrt().item()
    assert (weight.double() - found.double()).norm().item() == pytest.approx(dropped, abs=HALF * weight.norm().item())


def test_truncation_by_hand() -> None:
    found = truncated_svd(torch.tensor([[0.0, -4.0], [1.0, 0.0], [0.0, 0.0]]), 1)
    assert found.left.tolist() == [[2.0], [0.0], [0.0]]
    assert found.right.tolist() == [[0.0, -2.0]]


@PROPERTY
@given(shape=shapes, seed=seeds)
def test_factors_are_halves_with_equal_norms_orthogonal_and_of_fixed_signs(shape: tuple[int, int], seed: int) -> None:
    weight, rank = noise(*shape, seed=seed), min(shape)
    left, right = truncated_svd(weight, rank)
    assert left.dtype == right.dtype == torch.float16
    values = torch.diag(torch.linalg.svdvals(weight.double()))
    assert torch.allclose(left.T.double() @ left.double(), values, atol=0.01)
    assert torch.allclose(right.double() @ right.T.double(), values, atol=0.01)
    assert (left.amax(0) >= 0.998 * left.abs().amax(0)).all()  # entries may tie in half precision


def test_the_mirrored_weight_mirrors_the_right_factor_alone() -> None:
    weight = noise(6, 9)
    (left, right), (same, mirrored) = truncated_svd(weight, 3), truncated_svd(-weight, 3)
    assert torch.allclose(left, same, atol=2e-3)
    assert torch.allclose(right, -mirrored, atol=2e-3)


@pytest.mark.parametrize("rank", [-1, 0, 5])
def test_ranks_that_a_weight_cannot_have_are_refused(rank: int) -> None:
    weight = noise(4, 6)
    message = rf"^a weight \[4, 6\] has no rank {rank}: 1 to 4$"
    with pytest.raises(ValueError, match=message):
        truncated_svd(weight, rank)
    with pytest.raises(ValueError, match=message):
        activation_weighted_svd(weight, torch.eye(6).double(), rank)


@PROPERTY
@given(shape=shapes, seed=seeds, data=st.data())
def test_weighting_by_the_identity_is_plain_truncation(shape: tuple[int, int], seed: int, data: st.DataObject) -> None:
    weight, rank = noise(*shape, seed=seed), data.draw(st.integers(1, min(shape)))
    plain = truncated_svd(weight, rank).rebuild(weight)
    weighted = activation_weighted_svd(weight, 7 * torch.eye(shape[1]).double(), rank).rebuild(weight)
    assert torch.allclose(plain, weighted, atol=HALF * weight.norm().item())


@PROPERTY
@given(shape=shapes, tokens=st.integers(1, 30), seed=seeds, data=st.data())
def test_no_rank_has_nearer_outputs_than_the_weighted_truncation(
    shape: tuple[int, int], tokens: int, seed: int, data: st.DataObject
) -> None:
    weight, gram = noise(*shape, seed=seed), anisotropic(tokens, shape[1], seed + 1)
    rank = data.draw(st.integers(1, min(shape)))
    found = activation_weighted_svd(weight, gram, rank).rebuild(weight)
    error, best, whole = output_error(weight, found, gram), least(weight, gram, rank), size(weight, gram)
    largest = torch.linalg.eigvalsh(gram)[-1].sqrt().item() * weight.norm().item()  # bounds what rounding can move
    assert error**0.5 <= best**0.5 + HALF * largest
    assert error >= best * (1 - 1e-3) - 1e-9 * whole - 1e-10 * largest**2


def test_weighted_truncation_equals_the_one_with_the_inverse_root() -> None:
    weight, gram = noise(12, 8), anisotropic(100, 8)
    values, vectors = torch.linalg.eigh(gram)
    root, inverse = ((vectors * values**power) @ vectors.T for power in (0.5, -0.5))
    u, s, v = torch.linalg.svd(weight.double() @ root)
    expected = (u[:, :3] * s[:3]) @ v[:3] @ inverse
    found = activation_weighted_svd(weight, gram, 3).rebuild(weight)
    assert torch.allclose(found.double(), expected, atol=HALF * weight.norm().item())


def test_weighting_has_nearer_outputs_than_plain_truncation_and_farther_weights() -> None:
    weight, gram = noise(24, 16), anisotropic(200, 16)
    plain, weighted = (
        form.rebuild(weight) for form in (truncated_svd(weight, 5), activation_weighted_svd(weight, gram, 5))
    )
    assert output_error(weight, weighted, gram) < 0.5 * output_error(weight, plain, gram)
    assert (weight - weighted).norm() > (weight - plain).norm()


def test_the_size_of_the_inputs_does_not_matter() -> None:
    weight, gram = noise(9, 7), anisotropic(50, 7)
    small, large = (activation_weighted_svd(weight, factor * gram, 3) for factor in (1e-8, 1e8))
    assert torch.allclose(small.rebuild(weight), large.rebuild(weight), atol=1e-2)


def test_ranks_beyond_that_of_the_inputs_go_to_the_largest_of_what_is_left() -> None:
    weight, inputs = noise(8, 8), torch.zeros(5, 8).double()
    inputs[:, 0] = 1  # one direction is all that the inputs take
    taken = weight[:, :1].double() / weight[:, 0].norm()
    rest = weight - taken @ (taken.T @ weight.double())
    for rank in range(1, 9):
        found = activation_weighted_svd(weight, inputs.T @ inputs, rank).rebuild(weight)
        assert torch.allclose(found[:, 0], weight[:, 0], atol=HALF * weight.norm().item())
        left_over = torch.linalg.svdvals(rest)[rank - 1 :].norm().item()
        assert (weight - found).norm().item() == pytest.approx(left_over, abs=HALF * weight.norm().item())


@pytest.mark.parametrize("weight", [torch.zeros(4, 6), torch.ones(4, 6)])
def test_weights_of_lower_rank_have_finite_factors(weight: Tensor) -> None:
    for form in (truncated_svd(weight, 4), activation_weighted_svd(weight, anisotropic(10, 6), 4)):
        assert torch.allclose(form.rebuild(weight), weight, atol=HALF)


def test_a_weight_over_transposed_storage_can_be_saved_like_any_other() -> None:
    weight = noise(8, 6).T.contiguous().T
    found = activation_weighted_svd(weight, anisotropic(20, 6), 2)
    assert isinstance(found, LowRank)
    back = read_form(load(save(found.tensors())), 6)
    assert torch.equal(back.rebuild(weight), found.rebuild(weight))

"""SparseGPT against exact updates by explicit inversion, closed forms, and what any mask must hold."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from feature_survival.compression.forms import Updated
from feature_survival.compression.masks import keep_mask, masks_in_groups
from feature_survival.compression.scores import magnitude, wanda
from feature_survival.compression.sparsegpt import sparsegpt

GROUPS = ["row", "matrix", "2:4"]
PROPERTY = settings(max_examples=40, deadline=None)


def case(rows: int, columns: int, seed: int = 0, tokens: int = 200) -> tuple[Tensor, Tensor]:
    """A random weight, and the gram matrix of inputs of unequal size that share a common part."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    inputs = torch.randn(tokens, columns, generator=generator, dtype=torch.float64)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64) / columns**0.5
    inputs = (inputs @ mixing + inputs[:, :1]) * torch.linspace(0.5, 2, columns, dtype=torch.float64)
    return weight, inputs.T @ inputs


def damped(gram: Tensor, damping: float = 0.01) -> Tensor:
    return gram + damping * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)


def exact_sweep(weight: Tensor, hessian: Tensor, mask: Tensor) -> Tensor:
    """Optimal Brain Surgeon left to right, the inverse Hessian of the remaining columns recomputed at each."""
    swept = weight.double().clone()
    for column in range(weight.shape[1]):
        inverse = torch.linalg.inv(hessian[column:, column:])
        for row in range(len(weight)):
            if not mask[row, column]:
                swept[row, column:] -= swept[row, column].item() / inverse[0, 0] * inverse[0]
                swept[row, column] = 0
    return swept


def slow(weight: Tensor, hessian: Tensor, counts: list[int], group: str, width: int) -> tuple[Tensor, Tensor]:
    """Mask and weights, masks chosen every `width` columns: the `counts` (one a span) least salient of a row or span.

    The sweep starts over from the dense weight with the mask so far before every choice.
    """
    mask = torch.ones_like(weight, dtype=torch.bool)
    columns = weight.shape[1]
    removal = torch.tensor([torch.linalg.inv(hessian[column:, column:])[0, 0].item() for column in range(columns)])
    for start, count in zip(range(0, columns, width), counts, strict=True):
        chosen = range(start, min(start + width, columns))
        swept = exact_sweep(weight, hessian, mask)
        cells = [(swept[r, c].item() ** 2 / removal[c].item(), r, c) for r in range(len(weight)) for c in chosen]
        pools = [cells] if group == "matrix" else [[cell for cell in cells if cell[1] == r] for r in range(len(weight))]
        for pool in pools:
            for _, row, column in sorted(pool)[:count]:
                mask[row, column] = False
    return mask, exact_sweep(weight, hessian, mask)


def output_error(weight: Tensor, other: Tensor, gram: Tensor) -> float:
    change = (weight - other).double()
    return torch.einsum("oi,ij,oj->", change, gram, change).item()


def assert_same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-3, atol=1e-6)


def test_one_weight_pruned_by_hand() -> None:
    """H^-1 = [[2, -1], [-1, 2]] / 3: weight 1 costs 1 / (2/3), weight 4 costs 16 / (1/2); -1 / (2/3) * -1/3 = +0.5."""
    gram = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    mask, values = sparsegpt(torch.tensor([[1.0, 4.0]]), gram, 0.5, "row", damping=0)
    assert mask.tolist() == [[False, True]]
    assert values.tolist() == [4.5]


@pytest.mark.parametrize("seed", range(5))
def test_pruning_the_first_weight_moves_the_others_by_the_closed_form(seed: int) -> None:
    weight, gram = case(1, 6, seed)
    weight[0, 0] = 0.01
    pruned = sparsegpt(weight, gram, 0.17, "row")
    inverse = torch.linalg.inv(damped(gram))
    wanted = weight.double() - weight[0, 0].double() / inverse[0, 0] * inverse[:, 0]
    assert pruned.mask.tolist() == [[False] + [True] * 5]
    assert_same(pruned.values, wanted[0, 1:])


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("block", [4, 8, 128])
def test_the_updates_are_exact_for_the_mask(group: str, block: int) -> None:
    weight, gram = case(5, 20)
    pruned = sparsegpt(weight, gram, 0.45, group, block)
    assert_same(pruned.rebuild(weight), exact_sweep(weight, damped(gram), pruned.mask))


@pytest.mark.parametrize(
    ("group", "block", "span", "counts"),
    [
        ("row", 12, 12, [6]),
        ("row", 5, 5, [2, 3, 1]),  # floors of 2.5, 5, 6
        ("matrix", 12, 12, [24]),
        ("matrix", 5, 5, [10, 10, 4]),
        ("2:4", 12, 4, [2, 2, 2]),
        ("2:4", 8, 4, [2, 2, 2]),
        ("1:3", 6, 3, [2, 2, 2, 2]),
    ],
)
def test_a_slow_sweep_without_blocks_gives_the_same_mask_and_values(
    group: str, block: int, span: int, counts: list[int]
) -> None:
    weight, gram = case(4, 12, seed=3)
    pruned = sparsegpt(weight, gram, 0.5, group, block)
    mask, swept = slow(weight, damped(gram), counts, group, span)
    assert torch.equal(pruned.mask, mask)
    assert_same(pruned.values, swept[mask])


@pytest.mark.parametrize("group", GROUPS)
def test_with_independent_inputs_nothing_moves_and_the_mask_is_that_of_wanda_in_each_block(group: str) -> None:
    weight, gram = case(6, 32)
    norms = gram.diagonal().sqrt()
    pruned = sparsegpt(weight, torch.diag(norms**2), 0.5, group, block=8, damping=0)
    scores = wanda(weight.double(), norms)
    wanted = torch.cat([masks_in_groups(part, 0.5, group) for part in scores.split(8, dim=1)], dim=1)
    assert torch.equal(pruned.mask, wanted)
    assert torch.equal(pruned.values, weight[wanted].half())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("group", GROUPS)
def test_the_update_lowers_the_output_error_but_not_below_least_squares(group: str, seed: int) -> None:
    weight, gram = case(8, 32, seed)
    pruned = sparsegpt(weight, gram, 0.5, group, block=16)
    best = torch.zeros_like(weight).double()
    for row, mask in enumerate(pruned.mask):
        best[row, mask] = torch.linalg.solve(gram[mask][:, mask], gram[mask] @ weight[row].double())
    errors = [output_error(weight, other, gram) for other in (best, pruned.rebuild(weight), weight * pruned.mask)]
    assert errors[0] < errors[1] < 0.9 * errors[2]


@pytest.mark.parametrize("seed", range(4))
def test_correlated_inputs_favour_sparsegpt_over_scores_alone(seed: int) -> None:
    weight, gram = case(8, 32, seed)
    error = output_error(weight, sparsegpt(weight, gram, 0.5, "row").rebuild(weight), gram)
    for scores in (magnitude(weight), wanda(weight, gram.diagonal().sqrt().float())):
        assert error < 0.9 * output_error(weight, weight * keep_mask(scores, 0.5), gram)


@pytest.mark.parametrize("group", ["2:4", "4:8", "1:4"])
def test_a_pattern_does_not_depend_on_the_block(group: str) -> None:
    weight, gram = case(6, 48)
    narrow, wide = (sparsegpt(weight, gram, 0.5, group, block) for block in (8, 48))
    assert torch.equal(narrow.mask, wide.mask)
    assert_same(narrow.values, wide.values)


@PROPERTY
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 30),
    block=st.integers(1, 32),
    thousandths=st.integers(0, 999),
    group=st.sampled_from(["row", "matrix"]),
)
def test_every_row_or_the_matrix_loses_exactly_the_floor(
    rows: int, columns: int, block: int, thousandths: int, group: str
) -> None:
    weight, gram = case(rows, columns, seed=columns, tokens=40)
    mask, values = sparsegpt(weight, gram, thousandths / 1000, group, block)
    lost = (~mask).sum(1) if group == "row" else (~mask).sum()
    assert (lost == (columns if group == "row" else mask.numel()) * thousandths // 1000).all()
    assert values.shape == (mask.sum(),) and values.isfinite().all()


@PROPERTY
@given(rows=st.integers(1, 5), groups=st.integers(1, 8), each=st.integers(1, 4), of=st.integers(1, 6), data=st.data())
def test_a_pattern_holds_in_every_group(rows: int, groups: int, each: int, of: int, data: st.DataObject) -> None:
    of += 1
    kept = data.draw(st.integers(1, of - 1))
    weight, gram = case(rows, groups * of, seed=of, tokens=40)
    mask = sparsegpt(weight, gram, 0.9, f"{kept}:{of}", block=each * of).mask  # whatever the sparsity
    assert (mask.view(rows, groups, of).sum(2) == kept).all()


@pytest.mark.parametrize("group", GROUPS)
def test_an_input_that_is_never_active_has_weight_zero_and_changes_no_other(group: str) -> None:
    weight, gram = case(4, 16)
    weight[:, 5] = 100
    gram[5], gram[:, 5] = 0, 0
    pruned = sparsegpt(weight, gram, 0.25, group, block=8)
    assert (pruned.rebuild(weight)[:, 5] == 0).all() and pruned.values.isfinite().all()
    without_large = weight.clone()
    without_large[:, 5] = 0
    again = sparsegpt(without_large, gram, 0.25, group, block=8)
    assert torch.equal(pruned.mask, again.mask) and torch.equal(pruned.values, again.values)


def test_a_selected_weight_stays_selected_though_it_is_zero() -> None:
    mask, values = sparsegpt(torch.ones(2, 4), torch.zeros(4, 4, dtype=torch.float64), 0.5, "row")
    assert mask.sum(1).tolist() == [2, 2]
    assert values.tolist() == [0] * 4


@pytest.mark.parametrize("group", GROUPS)
def test_fewer_tokens_than_inputs_are_enough(group: str) -> None:
    weight, gram = case(4, 32, tokens=6)
    pruned = sparsegpt(weight, gram, 0.5, group, block=16)
    assert torch.linalg.matrix_rank(gram) == 6
    assert output_error(weight, pruned.rebuild(weight), gram) < output_error(weight, weight * pruned.mask, gram)


def test_a_factor_in_the_gram_cancels_though_inputs_are_dead() -> None:
    weight, gram = case(4, 16)
    gram[5], gram[:, 5] = 0, 0
    one, many = (sparsegpt(weight, factor * gram, 0.5, "row") for factor in (1, 2.0**-20))
    assert torch.equal(one.mask, many.mask)
    assert_same(one.values, many.values)


def test_nothing_pruned_is_the_weight_in_half_precision() -> None:
    weight, gram = case(3, 8)
    found = sparsegpt(weight, gram, 0.0, "matrix")
    assert isinstance(found, Updated) and found.values.dtype == torch.float16
    assert torch.equal(found.values, weight.half().flatten())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_arguments_are_left_alone(dtype: torch.dtype) -> None:
    weight, gram = case(3, 8)
    weight, gram[0], gram[:, 0] = weight.to(dtype), 0, 0
    before = weight.clone(), gram.clone()
    sparsegpt(weight, gram, 0.5, "row")
    assert torch.equal(weight, before[0]) and torch.equal(gram, before[1])


@pytest.mark.parametrize(("columns", "group", "block"), [(10, "2:4", 8), (12, "2:4", 6), (12, "1:3", 8)])
def test_a_pattern_that_does_not_fit_is_refused_in_one_line(columns: int, group: str, block: int) -> None:
    weight, gram = case(2, columns)
    with pytest.raises(ValueError, match=rf"^pattern {group} .*{columns}.*{block}$"):
        sparsegpt(weight, gram, 0.5, group, block)


def test_a_gram_of_other_inputs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^gram is \[6, 6\], the weight \[2, 8\]$"):
        sparsegpt(case(2, 8)[0], case(2, 6)[1], 0.5, "row")

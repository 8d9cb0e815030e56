"""From scores to masks and back from bits."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from feature_survival.compression.forms import pack, unpack
from feature_survival.compression.masks import keep_mask, masks_in_groups, masks_over_model, pruned_count
from feature_survival.compression.scores import magnitude, random, wanda
from feature_survival.recipes import GROUPS, pattern

thousandths = st.integers(0, 999)
tied_scores = st.lists(st.integers(0, 4), min_size=1, max_size=40).map(lambda row: torch.tensor(row).float())
PROPERTY = settings(max_examples=60, deadline=None)


def bits(*rows: str) -> Tensor:
    return torch.tensor([[character == "1" for character in row] for row in rows])


@PROPERTY
@given(n=st.integers(1, 10**7), sparsity=thousandths)
def test_the_pruned_count_is_the_exact_floor_of_the_decimal_written(n: int, sparsity: int) -> None:
    assert pruned_count(n, sparsity / 1000) == int(n * Decimal(sparsity) / 1000)


def test_sparsities_that_floats_round_down_still_prune_all_their_weights() -> None:
    assert [pruned_count(100, sparsity) for sparsity in (0.29, 0.57, 0.58, 0.07)] == [29, 57, 58, 7]


@PROPERTY
@given(rows=st.integers(1, 5), width=st.integers(1, 70), sparsity=thousandths)
def test_masks_prune_exactly_the_floor_of_each_row(rows: int, width: int, sparsity: int) -> None:
    scores = torch.rand(rows, width, generator=torch.Generator().manual_seed(width))
    assert ((~keep_mask(scores, sparsity / 1000)).sum(1) == width * sparsity // 1000).all()


@PROPERTY
@given(scores=tied_scores, sparsity=thousandths)
def test_the_lowest_scores_go_and_ties_go_by_index(scores: Tensor, sparsity: int) -> None:
    order = sorted(range(len(scores)), key=lambda index: (scores[index].item(), index))
    gone = set(order[: len(scores) * sparsity // 1000])
    assert keep_mask(scores, sparsity / 1000).tolist() == [index not in gone for index in range(len(scores))]


@PROPERTY
@given(scores=tied_scores, sparsities=st.tuples(thousandths, thousandths).map(sorted))
def test_a_higher_sparsity_prunes_a_superset(scores: Tensor, sparsities: list[int]) -> None:
    fewer, more = (~keep_mask(scores, sparsity / 1000) for sparsity in sparsities)
    assert (more | ~fewer).all()


SCORES = {"a": torch.tensor([[1.0, 4, 2, 3], [8, 7, 6, 5]]), "b": torch.tensor([[0.0, 9], [9, 0]])}


def masks_of_both(sparsity: float, group: str) -> tuple[Tensor, Tensor]:
    if group == "model":
        masks = masks_over_model(SCORES, sparsity)
        assert list(masks) == ["a", "b"]
        return masks["a"], masks["b"]
    return masks_in_groups(SCORES["a"], sparsity, group), masks_in_groups(SCORES["b"], sparsity, group)


@pytest.mark.parametrize(
    ("group", "a", "b"),
    [
        ("row", bits("0101", "1100"), bits("01", "10")),
        ("matrix", bits("0000", "1111"), bits("01", "10")),
        ("model", bits("0000", "1111"), bits("01", "10")),
        ("1:2", bits("0101", "1010"), bits("01", "10")),
    ],
)
def test_half_of_a_small_model_by_hand(group: str, a: Tensor, b: Tensor) -> None:
    found = masks_of_both(0.5, group)
    assert torch.equal(found[0], a)
    assert torch.equal(found[1], b)


def test_groups_differ_at_a_quarter_by_hand() -> None:
    by_row, by_matrix, by_model = (masks_of_both(0.25, group) for group in GROUPS)
    assert torch.equal(by_row[0], bits("0111", "1110"))
    assert torch.equal(by_row[1], bits("11", "11"))  # floor(2 / 4) = 0
    assert torch.equal(by_matrix[0], bits("0101", "1111"))
    assert torch.equal(by_matrix[1], bits("01", "11"))
    assert torch.equal(by_model[0], bits("0111", "1111"))  # 3 of 12: both zeros of b and the 1 of a
    assert torch.equal(by_model[1], bits("01", "10"))


patterns = st.integers(2, 9).flatmap(lambda of: st.tuples(st.integers(1, of - 1), st.just(of)))


@PROPERTY
@given(of_each=patterns, rows=st.integers(1, 4), groups=st.integers(1, 5), seed=st.integers(0, 99))
def test_a_pattern_keeps_the_highest_of_consecutive_inputs_whatever_the_sparsity(
    of_each: tuple[int, int], rows: int, groups: int, seed: int
) -> None:
    kept, of = of_each
    scores = torch.randint(0, 6, (rows, groups * of), generator=torch.Generator().manual_seed(seed)).float()
    expected = torch.zeros_like(scores, dtype=torch.bool)
    for row in range(rows):
        for start in range(0, groups * of, of):
            order = sorted(range(start, start + of), key=lambda column: (scores[row, column].item(), column))
            expected[row, order[of - kept :]] = True
    for sparsity in (0.0, 0.9):
        assert torch.equal(masks_in_groups(scores, sparsity, f"{kept}:{of}"), expected)


def test_the_share_of_a_pattern_is_exact() -> None:
    """As a float, a fifth of five (1 - 4/5) is below 1."""
    assert (masks_in_groups(torch.rand(4, 10), 0.0, "4:5").view(-1, 5).sum(1) == 4).all()
    assert pruned_count(5, 1 - Fraction(4, 5)) == 1
    assert pruned_count(5, 1 - 4 / 5) == 0


def test_a_pattern_that_does_not_divide_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="pattern 2:4 does not divide rows of 6"):
        masks_in_groups(torch.rand(4, 6), 0.5, "2:4")


@PROPERTY
@given(n=st.integers(-2, 12), m=st.integers(-2, 12))
def test_a_pattern_is_two_positive_numbers_the_first_below_the_second(n: int, m: int) -> None:
    if 1 <= n < m:
        assert pattern(f"{n}:{m}") == (n, m)
    else:
        with pytest.raises(ValueError, match="is not one of row, matrix, model or a pattern N:M with N < M"):
            pattern(f"{n}:{m}")


@pytest.mark.parametrize("group", ["2", "2:", ":4", "2:4:8", "2:4\n", " 2:4", "02:4", "2.0:4", "column", ""])
def test_what_is_no_pattern_is_refused(group: str) -> None:
    with pytest.raises(ValueError, match=r"pattern N:M with N < M, e\.g\. 2:4"):
        pattern(group)


def test_scores_are_those_of_the_papers() -> None:
    weight = torch.tensor([[-2.0, 1.0], [0.5, -3.0]])
    assert torch.equal(magnitude(weight), torch.tensor([[2.0, 1.0], [0.5, 3.0]]))
    assert torch.equal(wanda(weight, torch.tensor([10.0, 1.0])), torch.tensor([[20.0, 1.0], [5.0, 3.0]]))
    with pytest.raises(ValueError, match="input norms"):
        wanda(weight, None)


def test_random_scores_depend_on_the_weight_alone() -> None:
    weight, other = (torch.randn(8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    first = random(weight)
    torch.manual_seed(7)
    assert torch.equal(random(weight.T.contiguous().T), first)  # however it is stored, whatever was drawn before
    assert not torch.equal(random(other), first)
    assert first.shape == weight.shape
    assert ((first >= 0) & (first < 1)).all()


@pytest.mark.parametrize("width", range(1, 71))
def test_masks_survive_packing_at_every_width(width: int) -> None:
    mask = torch.rand(3, width, generator=torch.Generator().manual_seed(width)) < 0.5
    packed = pack(mask)
    assert (packed.dtype, packed.shape) == (torch.uint8, (3, -(-width // 8)))
    assert torch.equal(unpack(packed, width), mask)


def test_bits_are_packed_from_the_most_significant_with_zeros_after() -> None:
    assert pack(bits("1000000011", "0000000101")).tolist() == [[0b10000000, 0b11000000], [0b00000001, 0b01000000]]


def test_a_mask_over_transposed_storage_packs_into_a_file_like_any_other() -> None:
    scores = torch.rand(24, 16, generator=torch.Generator().manual_seed(0))
    plain = pack(keep_mask(scores, 0.5))
    transposed = pack(keep_mask(scores.T.contiguous().T, 0.5))
    assert torch.equal(plain, transposed)
    assert transposed.is_contiguous()


@pytest.mark.parametrize("packed", [torch.zeros(2, 2, dtype=torch.uint8), torch.zeros(2, 3, dtype=torch.int16)])
def test_packed_rows_of_another_width_or_type_are_refused(packed: Tensor) -> None:
    with pytest.raises(ValueError, match="does not hold rows of 20 bits"):
        unpack(packed, 20)


def test_large_rows_equal_numpy_stable_argsort() -> None:
    scores = torch.randint(0, 50, (20, 999), generator=torch.Generator().manual_seed(0)).float()
    expected = np.ones((20, 999), dtype=bool)
    np.put_along_axis(expected, np.argsort(scores.numpy(), axis=1, kind="stable")[:, :399], False, axis=1)
    assert torch.equal(keep_mask(scores, 0.4), torch.from_numpy(expected))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_masks_of_every_float_type_equal_those_of_a_stable_sort(kind: torch.dtype) -> None:
    scores = torch.rand(20, 65, generator=torch.Generator().manual_seed(0)).to(kind)  # of few bits: many ties
    expected = torch.ones(20, 65, dtype=torch.bool)
    expected.scatter_(1, scores.sort(dim=1, stable=True).indices[:, :32], False)
    assert torch.equal(keep_mask(scores, 0.5), expected)

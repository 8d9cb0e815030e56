"""Mutual nearest neighbours, against brute force and on planted answers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from feature_survival.matching import NO_MATCH, mutual_cosine, random_dictionary


def draw(rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def brute_force(a: Tensor, b: Tensor) -> list[float]:
    cosine = F.cosine_similarity(a[:, None].double(), b[None].double(), dim=-1).tolist()
    found = []
    for i, row in enumerate(cosine):
        j = max(range(len(row)), key=row.__getitem__)
        column = [other[j] for other in cosine]
        mutual = max(range(len(column)), key=column.__getitem__) == i
        found.append(row[j] if mutual else NO_MATCH)
    return found


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 30),
    m=st.integers(1, 30),
    width=st.integers(2, 8),
    seed=st.integers(0, 99),
    chunk=st.integers(1, 9),
)
def test_matching_equals_brute_force_whatever_the_chunk(n: int, m: int, width: int, seed: int, chunk: int) -> None:
    a, b = draw(n, width, seed), draw(m, width, seed + 100)
    assert mutual_cosine(a, b, chunk).tolist() == pytest.approx(brute_force(a, b), abs=1e-5)


def test_a_planted_permutation_is_found_whole() -> None:
    a = draw(200, 32)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    b = 3.0 * a[order] + 0.1 * draw(200, 32, seed=2)
    found = mutual_cosine(a, b)
    assert (found > 0.95).all()
    assert mutual_cosine(a, a[order]).tolist() == pytest.approx([1.0] * 200, abs=1e-5)


def test_planted_casualties_are_all_missed_and_the_others_all_found() -> None:
    a = draw(200, 64)
    b = a.clone()
    casualties = torch.arange(0, 200, 3)
    b[casualties] = draw(len(casualties), 64, seed=5)
    survived = mutual_cosine(a, b) >= 0.7
    assert survived.sum() == 200 - len(casualties)
    assert not survived[casualties].any()


def test_a_neighbour_that_prefers_another_is_no_match() -> None:
    a = torch.tensor([[1.0, 0.0], [0.9, 0.1]])
    assert mutual_cosine(a, torch.tensor([[2.0, 0.0]])).tolist() == pytest.approx([1.0, NO_MATCH])
    assert mutual_cosine(a.flip(0), torch.tensor([[2.0, 0.0]]), chunk=1).tolist() == pytest.approx([NO_MATCH, 1.0])


def test_of_equal_neighbours_the_first_is_taken() -> None:
    twice = torch.eye(3)[[0, 0, 1]]
    for chunk in (1, 2, 3):
        assert mutual_cosine(twice, twice, chunk).tolist() == [1.0, NO_MATCH, 1.0]


def test_both_directions_find_the_same_pairs() -> None:
    a, b = draw(50, 6), draw(70, 6, seed=1)
    forward, back = mutual_cosine(a, b), mutual_cosine(b, a)
    assert sorted(forward[forward > NO_MATCH].tolist()) == pytest.approx(sorted(back[back > NO_MATCH].tolist()))


def test_random_dictionaries_are_unit_uniform_and_the_seeds() -> None:
    first = random_dictionary(4000, 16, seed=0)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(4000))
    assert first.mean(0).abs().max() < 0.02
    assert torch.equal(first, random_dictionary(4000, 16, seed=0))
    assert not torch.equal(first, random_dictionary(4000, 16, seed=1))

"""Mutual nearest neighbours and one-to-one assignment, against brute force and on planted answers."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from feature_survival.matching import NO_MATCH, assigned, mutual_cosine, random_dictionary


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


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 5), m=st.integers(1, 5), width=st.integers(2, 6), seed=st.integers(0, 99))
def test_the_assignment_is_the_best_of_all_permutations(n: int, m: int, width: int, seed: int) -> None:
    a, b = draw(n, width, seed), draw(m, width, seed + 100)
    cosine = F.cosine_similarity(a[:, None], b[None], dim=-1)
    if n <= m:
        best = max(sum(cosine[i, j].item() for i, j in enumerate(order)) for order in permutations(range(m), n))
    else:
        best = max(sum(cosine[i, j].item() for j, i in enumerate(order)) for order in permutations(range(n), m))
    found, partner = assigned(a, b)
    matched = partner >= 0
    assert matched.sum() == min(n, m) == len(partner[matched].unique())  # each of b at most once
    assert found[matched].tolist() == pytest.approx(cosine[matched, partner[matched]].tolist(), abs=1e-5)
    assert found[matched].sum().item() == pytest.approx(best, abs=1e-5)


def test_the_assignment_recovers_a_planted_permutation() -> None:
    a = draw(200, 32)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    found, partner = assigned(a, 3.0 * a[order] + 0.1 * draw(200, 32, seed=2))
    assert torch.equal(order[partner], torch.arange(200))
    assert (found > 0.95).all()


def test_rows_left_over_have_no_cosine_and_no_partner() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    found, partner = assigned(a, torch.tensor([[0.0, 5.0], [2.0, 0.0]]))
    assert partner.tolist() == [1, -1, 0]
    assert found.tolist() == pytest.approx([1.0, torch.nan, 1.0], nan_ok=True)


def test_the_assignment_gives_up_a_nearest_neighbour_for_a_higher_sum() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 0.2]])  # both nearest to the first of b, the first of a nearer
    b = torch.tensor([[1.0, -0.1], [-0.2, 1.0]])
    found, partner = assigned(a, b)
    assert partner.tolist() == [0, 1]
    assert found[1] < 0.1
    assert mutual_cosine(a, b)[1] == NO_MATCH


def test_random_dictionaries_are_unit_uniform_and_the_seeds() -> None:
    first = random_dictionary(4000, 16, seed=0)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(4000))
    assert first.mean(0).abs().max() < 0.02
    assert torch.equal(first, random_dictionary(4000, 16, seed=0))
    assert not torch.equal(first, random_dictionary(4000, 16, seed=1))

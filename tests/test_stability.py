"""RQ1: SAEs against permuted, disturbed, smaller and random ones."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from feature_survival.matching import NO_MATCH, mutual_cosine
from feature_survival.metrics.stability import match, random_sae
from feature_survival.sae import Dictionary

WIDTH, FEATURES = 16, 40
EVERYTHING = torch.ones(FEATURES, dtype=torch.bool)


def drawn(seed: int, features: int = FEATURES, width: int = WIDTH) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    encoder = torch.randn(width, features, generator=generator)
    decoder = F.normalize(torch.randn(features, width, generator=generator), dim=1)
    return Dictionary(encoder, torch.zeros(features), decoder, torch.zeros(width), k=4)


def rows(sae: Dictionary, order: Tensor) -> Dictionary:
    """The features in this order, or some of them."""
    return sae._replace(W_enc=sae.W_enc[:, order], b_enc=sae.b_enc[order], W_dec=sae.W_dec[order])


def order_of(seed: int, count: int = FEATURES) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10))
def test_a_permuted_copy_is_matched_everywhere_whatever_its_scale(seed: int, scale: float) -> None:
    sae = drawn(seed)
    copy = rows(sae, order_of(seed))
    found = match(sae, copy._replace(W_enc=scale * copy.W_enc), EVERYTHING)
    assert set(found) == {"mutual_cosine", "matched_cosine", "matched_encoder_cosine"}
    for values in found.values():
        assert values.dtype == torch.float32
        torch.testing.assert_close(values, torch.ones(FEATURES), rtol=0, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_features_that_are_not_alive_take_no_partner_and_have_none(share: float) -> None:
    a, b = drawn(0), drawn(1)
    alive = torch.rand(FEATURES, generator=torch.Generator().manual_seed(0)) < share
    found = match(a, b, alive)
    for name in ("matched_cosine", "matched_encoder_cosine"):
        assert torch.equal(found[name].isnan(), ~alive)
    # Dropping the others from the SAE altogether leaves the same partners.
    only = match(rows(a, alive.nonzero()[:, 0]), b, torch.ones(int(alive.sum()), dtype=torch.bool))
    for name in ("matched_cosine", "matched_encoder_cosine"):
        torch.testing.assert_close(found[name][alive], only[name], rtol=0, atol=1e-6)
    torch.testing.assert_close(
        found["mutual_cosine"], mutual_cosine(a.W_dec, b.W_dec)
    )  # of all features, dead ones too


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), sizes=st.tuples(st.integers(2, FEATURES), st.integers(2, FEATURES)))
def test_partners_are_those_of_scipys_assignment_and_the_encoders_are_the_partners(
    seed: int, sizes: tuple[int, int]
) -> None:
    a, b = drawn(seed, sizes[0]), drawn(seed + 2000, sizes[1])
    found = match(a, b, torch.ones(sizes[0], dtype=torch.bool))
    cosine, encoders = a.W_dec @ b.W_dec.T, F.normalize(a.W_enc, dim=0).T @ F.normalize(b.W_enc, dim=0)
    first, second = linear_sum_assignment(-cosine.double().numpy())
    assert found["matched_cosine"].isnan().sum() == max(0, sizes[0] - sizes[1])  # no free partner
    assert torch.equal(found["matched_cosine"].isnan(), found["matched_encoder_cosine"].isnan())
    assert found["matched_cosine"].nansum().item() == pytest.approx(cosine[first, second].sum().item(), abs=1e-4)
    torch.testing.assert_close(found["matched_cosine"][first], cosine[first, second], rtol=0, atol=1e-5)
    torch.testing.assert_close(found["matched_encoder_cosine"][first], encoders[first, second], rtol=0, atol=1e-5)


def test_the_encoder_cosine_belongs_to_the_decoders_partner_not_to_the_nearest_encoder() -> None:
    a = drawn(0)
    order = order_of(1)
    b = rows(a, order)._replace(W_enc=a.W_enc)  # decoders permuted, encoders left where they are
    found = match(a, b, EVERYTHING)
    encoder = F.normalize(a.W_enc, dim=0)
    partner = order.argsort()  # feature i of a is feature partner[i] of b
    expected = (encoder * encoder[:, partner]).sum(0)
    torch.testing.assert_close(found["matched_cosine"], torch.ones(FEATURES), rtol=0, atol=1e-5)
    torch.testing.assert_close(found["matched_encoder_cosine"], expected, rtol=0, atol=1e-5)
    assert expected.mean() < 0.3


def test_a_partner_nearer_to_another_feature_is_assigned_to_that_one_and_mutual_to_no_other() -> None:
    first, second = (
        drawn(0, 2, width=2)._replace(W_dec=torch.tensor([[math.cos(angle), math.sin(angle)] for angle in angles]))
        for angles in ((0.0, 0.3), (0.0, 1.2))  # both of the first are nearest to 0.0 of the second
    )
    found = match(first, second, torch.ones(2, dtype=torch.bool))
    torch.testing.assert_close(found["matched_cosine"], torch.tensor([1, math.cos(1.2 - 0.3)]))
    torch.testing.assert_close(found["mutual_cosine"], torch.tensor([1, NO_MATCH]))


def test_a_random_sae_has_the_shape_of_its_model_and_is_far_from_everything() -> None:
    sae = drawn(0, features=300, width=256)
    chance = random_sae(sae, seed=0)
    for found, like in zip(chance, sae, strict=True):
        assert getattr(found, "shape", found) == getattr(like, "shape", like)
    torch.testing.assert_close(chance.W_dec.norm(dim=1), torch.ones(300))
    assert torch.equal(chance.W_enc, chance.W_dec.T)
    found = match(sae, chance, torch.ones(300, dtype=torch.bool))
    assert all(values.max() < 0.4 for values in found.values())  # 300 unit vectors in 256 dimensions


def test_random_saes_are_their_seeds() -> None:
    sae = drawn(0)
    first, again, other = (random_sae(sae, seed) for seed in (3, 3, 4))
    assert torch.equal(first.W_dec, again.W_dec)
    assert not torch.equal(first.W_dec, other.W_dec)
    assert not torch.equal(first.W_dec, sae.W_dec)

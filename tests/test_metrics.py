"""Metrics: tensors in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from conftest import hooks_on
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from feature_survival.catalogue import Site
from feature_survival.config import Seed
from feature_survival.forward import at_site, cross_entropy
from feature_survival.metrics.language import (
    divergence,
    loss_recovered,
    mean_cross_entropy,
    measure_splices,
    strided_cross_entropy,
)
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
    assert found.mean_activation.tolist() == [2.0, 1.5, 4.0, 0.0]  # over the tokens on which each fires
    assert found.max_activation.tolist() == [3.0, 2.0, 4.0, 0.0]
    centred = x - x.mean(0)
    assert found.fvu == pytest.approx(30 / centred.square().sum().item())  # only the last row is not explained


@settings(max_examples=25, deadline=None)
@given(cuts=st.sets(st.integers(1, 59)), k=st.integers(1, 12))
def test_codes_are_summed_the_same_whatever_the_batches(cuts: set[int], k: int) -> None:
    generator = torch.Generator().manual_seed(1)
    sae = Dictionary(torch.randn(5, 12, generator=generator), torch.zeros(12), torch.eye(12, 5), torch.zeros(5), k)
    edges, x = [0, *sorted(cuts), 60], activations()
    found = measure_reconstruction(sae, x.split([b - a for a, b in pairwise(edges)]))
    codes = torch.zeros(60, 12).scatter(1, (x @ sae.W_enc).topk(k).indices, (x @ sae.W_enc).topk(k).values.relu())
    fired = (codes > 0).sum(0)
    assert torch.equal(found.firing_rate, fired.double() / 60)
    assert found.l0 == pytest.approx((codes > 0).sum(1).double().mean().item())
    assert found.share_dead == pytest.approx((fired == 0).double().mean().item())
    torch.testing.assert_close(found.mean_activation, codes.double().sum(0) / fired.clamp(min=1), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.max_activation, codes.double().amax(0), rtol=1e-5, atol=0)
    whole = measure_reconstruction(sae, [x])
    torch.testing.assert_close(found[3:], whole[3:], rtol=1e-5, atol=0)
    assert found.fvu == pytest.approx(whole.fvu, rel=1e-6)


def test_alive_needs_one_in_a_hundred_thousand_or_ten_firings() -> None:
    firings = torch.tensor([0, 9, 10, 11], dtype=torch.float64)
    assert alive(firings / 1000, 1000).tolist() == [False, False, True, True]
    assert alive(10 * firings / 10_000_000, 10_000_000).tolist() == [False, False, True, True]


def test_the_score_is_the_share_of_loss_recovered() -> None:
    assert loss_recovered(model=2.0, zero=6.0, spliced=3.0) == 0.75
    assert loss_recovered(model=2.0, zero=6.0, spliced=2.0) == 1
    assert loss_recovered(model=2.0, zero=6.0, spliced=6.0) == 0
    assert loss_recovered(model=2.0, zero=6.0, spliced=8.0) == -0.5  # worse than a site of zeros


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 30))
def test_divergence_is_the_kl_of_two_categorical_distributions(seed: int, scale: float) -> None:
    logits = scale * torch.randn(2, 3, 4, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    p, q = (torch.distributions.Categorical(logits=each) for each in logits)
    expected = torch.distributions.kl_divergence(p, q)
    torch.testing.assert_close(divergence(*logits.log_softmax(-1)), expected, rtol=1e-9, atol=1e-12)


def test_divergence_by_hand_is_taken_under_the_first_distribution() -> None:
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert divergence(p.log(), q.log()).item() == pytest.approx(expected, rel=1e-5)
    assert divergence(p.log(), p.log()).item() == 0


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


def test_strided_cross_entropy_counts_the_last_positions_of_each_window(llama: PreTrainedModel, tokens: Tensor) -> None:
    new = torch.tensor([15, 4, 4, 1, 9, 2])
    losses = [cross_entropy(llama, window[None])[0, -count:] for window, count in zip(tokens, new, strict=True)]
    found = strided_cross_entropy(llama, tokens, new, 4)
    assert found == pytest.approx(torch.cat(losses).double().mean().item(), rel=1e-6)


@pytest.mark.parametrize("batch", [1, 4, 6])
def test_mean_cross_entropy_is_the_models_own_loss(llama: PreTrainedModel, tokens: Tensor, batch: int) -> None:
    expected = llama(tokens, labels=tokens).loss.item()
    assert mean_cross_entropy(llama, tokens, batch) == pytest.approx(expected, rel=1e-5)


def test_splicing_the_identity_costs_nothing_and_zero_costs_something(model: PreTrainedModel, tokens: Tensor) -> None:
    plain, found = measure_splices(model, SITE, {"same": torch.clone, "zero": torch.zeros_like}, tokens, 4)
    assert plain == pytest.approx(mean_cross_entropy(model, tokens, 4), rel=1e-6)
    assert found["same"].cross_entropy == plain
    assert found["same"].kl == 0
    assert abs(found["zero"].cross_entropy - plain) > 0.01
    assert found["zero"].kl > 0.01
    assert mean_cross_entropy(model, tokens, 4) == pytest.approx(plain, rel=1e-6)  # nothing is left in the model
    assert hooks_on(model) == 0


@pytest.mark.parametrize("site", ["resid_post.1", "mlp_out.1", "attn_out.1", "attn_z.1"])
def test_a_splice_costs_what_a_hooked_pass_and_torchs_distributions_say(
    model: PreTrainedModel, tokens: Tensor, site: str
) -> None:
    where = Site.parse(site)

    def flip_all_but_the_first(x: Tensor) -> Tensor:
        return torch.cat([x[:, :1], x[:, 1:].flip(-1)], dim=1)

    before = model(tokens).logits[:, :-1]
    with at_site(model, where, flip_all_but_the_first):
        after = model(tokens).logits[:, :-1]
    entropy = F.cross_entropy(after.flatten(0, 1), tokens[:, 1:].flatten()).item()
    p, q = (torch.distributions.Categorical(logits=logits) for logits in (before, after))
    kl = torch.distributions.kl_divergence(p, q).mean().item()
    _, found = measure_splices(model, where, {"flip": lambda x: x.flip(-1)}, tokens, 6)
    assert found["flip"].cross_entropy == pytest.approx(entropy, rel=1e-5)
    assert found["flip"].kl == pytest.approx(kl, rel=1e-4)
    assert kl > 0.001


@pytest.mark.parametrize("batch", [1, 4, 6])
def test_replacements_measured_together_are_measured_as_alone_whatever_the_batch(
    llama: PreTrainedModel, tokens: Tensor, batch: int
) -> None:
    replacements: dict[object, Callable[[Tensor], Tensor]] = {
        "zero": torch.zeros_like,
        ("half", 1): lambda x: x / 2,
        "mean": lambda x: x.mean(-1, keepdim=True).expand_as(x),
    }
    plain, together = measure_splices(llama, SITE, replacements, tokens, batch)
    assert list(together) == list(replacements)
    for name, replace in replacements.items():
        also_plain, alone = measure_splices(llama, SITE, {name: replace}, tokens, 6)
        assert plain == pytest.approx(also_plain, rel=1e-6)
        assert together[name] == pytest.approx(alone[name], rel=1e-5)


def test_the_first_position_keeps_its_own_activations(llama: PreTrainedModel, tokens: Tensor) -> None:
    seen = []

    def replace(x: Tensor) -> Tensor:
        seen.append(x.shape)
        return torch.zeros_like(x)

    two_positions = tokens[:, :2]  # the loss reads the first position only
    plain, found = measure_splices(llama, SITE, {"zero": replace}, two_positions, 6)
    assert found["zero"] == (plain, 0)
    assert seen == [(6, 1, 32)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_dictionary_splices_into_a_model_on_the_gpu_as_on_the_cpu(llama: PreTrainedModel, tokens: Tensor) -> None:
    weights = [torch.randn(32, 64), torch.zeros(64), torch.randn(64, 32), torch.zeros(32)]
    on_cpu = Dictionary(*weights, k=4)
    on_gpu = Dictionary(*(weight.cuda() for weight in weights), k=4)
    plain, expected = measure_splices(llama, SITE, {"sae": on_cpu.reconstruct}, tokens, 6)
    plain_on_gpu, found = measure_splices(llama.cuda(), SITE, {"sae": on_gpu.reconstruct}, tokens, 6)
    assert plain_on_gpu == pytest.approx(plain, rel=1e-3)
    assert found["sae"] == pytest.approx(expected["sae"], rel=1e-3)

"""RQ5: effects of ablating features, against full forward passes one feature at a time."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from conftest import VOCABULARY, hooks_on
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from feature_survival.catalogue import Site
from feature_survival.forward import at_site, read_site
from feature_survival.metrics.causal import Effects, measure_effects, stratified
from feature_survival.metrics.quintiles import BINS, quintiles
from feature_survival.metrics.survival import ABLATIONS
from feature_survival.sae import Dictionary

WIDTH, FEATURES, MANY = 32, 48, 100
CHOSEN = torch.tensor([40, 3, 17, 0, 25, 8, 33, 46, 12, 22])  # in no order
NEVER = 3  # this one of them is kept silent
LEVELS = torch.linspace(0.1, 1, len(CHOSEN))
SITE = Site("resid_post", 1)
SITES = ["resid_post.1", "mlp_out.1", "attn_out.1", "attn_z.1", "mlp_out.0", "resid_post.2", "mlp_out.2", "attn_z.2"]


def dictionary(model: PreTrainedModel, site: Site, tokens: Tensor) -> Dictionary:
    """A random SAE of the site's activations about their mean, its codes as large as they are."""
    generator = torch.Generator().manual_seed(0)
    encoder = torch.randn(WIDTH, FEATURES, generator=generator)
    decoder = F.normalize(torch.randn(FEATURES, WIDTH, generator=generator), dim=1)
    mean = read_site(model, site, tokens)[:, 1:].mean((0, 1))
    bias = -mean @ encoder
    bias[NEVER] = -1e6
    return Dictionary(encoder, bias, decoder, mean, k=6)


def codes(model: PreTrainedModel, site: Site, sae: Dictionary, tokens: Tensor) -> Tensor:
    """Every feature's activation [windows, position, d_sae]; the first position activates nothing."""
    pre = read_site(model, site, tokens) @ sae.W_enc + sae.b_enc
    lowest = pre.topk(sae.k, dim=-1).values[..., -1:]
    out = torch.where(pre >= lowest, pre, 0.0).relu()
    out[:, 0] = 0
    return out


class Plain(NamedTuple):
    """What ablating one feature does."""

    contexts: int
    tokens: int
    cross_entropy: float
    kl: float


@torch.no_grad()
def ablate(
    model: PreTrainedModel, site: Site, sae: Dictionary, feature: int, level: float, tokens: Tensor, most: int
) -> Plain:
    """One full pass with a hook that subtracts (a - level) d, over the first windows in which the feature fires."""
    a = codes(model, site, sae, tokens)[..., feature]
    windows = (a[:, :-1] > 0).any(1).nonzero()[:most, 0]  # what fires at the last position only is never seen to act
    if not len(windows):
        return Plain(0, 0, float("nan"), float("nan"))
    tokens, a = tokens[windows], a[windows]

    def subtract(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, 1:] -= (a[:, 1:, None] - level) * sae.W_dec[feature]
        return x

    before = model(tokens).logits[:, :-1]
    with at_site(model, site, subtract):
        after = model(tokens).logits[:, :-1]
    fires = a[:, :-1] > 0
    target = tokens[:, 1:][fires]
    change = F.cross_entropy(after[fires].double(), target) - F.cross_entropy(before[fires].double(), target)
    p, q = (torch.distributions.Categorical(logits=logits[fires].double()) for logits in (before, after))
    kl = torch.distributions.kl_divergence(p, q).mean()
    return Plain(len(windows), int(fires.sum()), change.item(), kl.item())


def measure(
    model: PreTrainedModel,
    tokens: Tensor,
    site: Site = SITE,
    most: int = MANY,
    batch: int = 4,
    rows: slice = slice(None),
) -> Effects:
    """Effects of some rows of CHOSEN."""
    sae = dictionary(model, site, tokens)
    return measure_effects(model, site, sae, CHOSEN[rows], LEVELS[rows], tokens, most, batch)


def expect(found: Effects, model: PreTrainedModel, tokens: Tensor, site: Site = SITE, most: int = MANY) -> None:
    """Every number of CHOSEN is that of `ablate`, and there is something to measure."""
    sae = dictionary(model, site, tokens)
    assert ABLATIONS == ("zero", "mean")
    for row, feature in enumerate(CHOSEN.tolist()):
        for number, level in enumerate((0.0, LEVELS[row].item())):
            plain = ablate(model, site, sae, feature, level, tokens, most)
            assert (found.contexts[row], found.tokens[row]) == plain[:2]
            assert found.cross_entropy[row, number].item() == pytest.approx(plain.cross_entropy, abs=1e-5, nan_ok=True)
            assert found.kl[row, number].item() == pytest.approx(plain.kl, abs=1e-5, nan_ok=True)
    for values in (found.cross_entropy, found.kl):
        assert (values.abs() > 1e-3).sum(0).min() >= len(CHOSEN) / 2


@pytest.mark.parametrize("name", SITES)
def test_effects_are_those_of_full_passes_one_feature_at_a_time(
    model: PreTrainedModel, tokens: Tensor, name: str
) -> None:
    site, plain = Site.parse(name), model(tokens).logits
    expect(measure(model, tokens, site), model, tokens, site)
    assert hooks_on(model) == 0
    assert torch.equal(model(tokens).logits, plain)


@pytest.mark.parametrize("most", [1, 2, 5])
def test_a_feature_is_ablated_in_the_first_windows_in_which_it_fires(
    llama: PreTrainedModel, tokens: Tensor, most: int
) -> None:
    found = measure(llama, tokens, most=most, batch=2)
    assert found.contexts.max() == most
    expect(found, llama, tokens, most=most)


@pytest.mark.parametrize("batch", [1, 5, 6, 50])
def test_the_batch_size_changes_no_number(llama: PreTrainedModel, tokens: Tensor, batch: int) -> None:
    for most in (2, MANY):
        found, other = measure(llama, tokens, most=most, batch=batch), measure(llama, tokens, most=most, batch=3)
        assert torch.equal(found.contexts, other.contexts)
        assert torch.equal(found.tokens, other.tokens)
        torch.testing.assert_close(found[2:], other[2:], rtol=0, atol=1e-5, equal_nan=True)


def test_a_feature_measured_alone_is_measured_as_among_others(llama: PreTrainedModel, tokens: Tensor) -> None:
    together = measure(llama, tokens)
    for row in range(len(CHOSEN)):
        alone = measure(llama, tokens, rows=slice(row, row + 1))
        for found, expected in zip(alone, together, strict=True):
            torch.testing.assert_close(found[0], expected[row], rtol=0, atol=1e-5, equal_nan=True)


def test_a_feature_that_never_fires_has_no_effect_to_speak_of(llama: PreTrainedModel, tokens: Tensor) -> None:
    row = CHOSEN.tolist().index(NEVER)
    found = measure(llama, tokens)
    assert (found.contexts[row], found.tokens[row]) == (0, 0)
    for values in (found.cross_entropy, found.kl):
        assert values.dtype == torch.float64
        assert values[row].isnan().all()
        assert not values[torch.arange(len(CHOSEN)) != row].isnan().any()


def test_a_feature_that_fires_only_where_no_token_follows_is_never_ablated(
    llama: PreTrainedModel, tokens: Tensor
) -> None:
    """A token that stands at the last position alone is the only one to activate feature 0."""
    rare = VOCABULARY - 1
    tokens = torch.where(tokens == rare, rare - 1, tokens)
    tokens[:, -1] = rare
    site = Site("resid_post", 0)
    read = read_site(llama, site, tokens)[:, 1:].flatten(0, 1)
    last = torch.arange(len(read)) % 15 == 14
    direction = torch.linalg.lstsq(torch.cat([read, torch.ones(len(read), 1)], dim=1), last.float()[:, None]).solution
    pre = read @ direction[:-1] + direction[-1]
    threshold = pre[~last].max() + 0.01
    assert pre[last].min() > threshold
    silent = Dictionary(direction[:-1], direction[-1] - threshold, torch.eye(1, WIDTH), torch.zeros(WIDTH), k=1)
    found = measure_effects(llama, site, silent, torch.tensor([0]), torch.zeros(1), tokens, MANY, 4)
    assert (found.contexts.item(), found.tokens.item()) == (0, 0)
    assert found.kl.isnan().all()


@pytest.mark.parametrize("name", ["resid_post.1", "attn_out.0"])
def test_ablating_a_direction_of_length_zero_changes_nothing(llama: PreTrainedModel, tokens: Tensor, name: str) -> None:
    site = Site.parse(name)
    sae = dictionary(llama, site, tokens)
    still = sae._replace(W_dec=torch.zeros_like(sae.W_dec))
    found = measure_effects(llama, site, still, CHOSEN, LEVELS, tokens, MANY, 4)
    fired = found.tokens > 0
    assert fired.any()
    for values in (found.cross_entropy, found.kl):
        torch.testing.assert_close(values[fired], torch.zeros_like(values[fired]), rtol=0, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 1000),
    features=st.integers(5, 200),
    share=st.floats(0.1, 1),
    count=st.integers(5, 60),
)
def test_a_stratified_sample_is_of_alive_features_as_many_from_each_quintile(
    seed: int, features: int, share: float, count: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rate = torch.rand(features, generator=generator, dtype=torch.float64) ** 4
    alive = torch.rand(features, generator=generator) < share
    found = stratified(rate, alive, count, seed)
    assert found.dtype == torch.long
    assert found.tolist() == sorted(set(found.tolist()))
    assert alive[found].all()
    candidates = alive.nonzero()[:, 0]
    of = dict(zip(candidates.tolist(), quintiles(rate[candidates].numpy()).tolist(), strict=True))
    drawn = [sum(of[feature] == number for feature in found.tolist()) for number in range(BINS)]
    if len(candidates) >= count:
        assert drawn == [count // BINS] * BINS
    else:
        assert max(drawn) <= count // BINS
        assert max(drawn) - min(drawn) <= 1


def test_a_stratified_sample_is_random_and_its_seeds() -> None:
    rate, alive = torch.rand(200, generator=torch.Generator().manual_seed(0)), torch.ones(200, dtype=torch.bool)
    first, again, other = (stratified(rate, alive, 50, seed) for seed in (0, 0, 1))
    assert len(first) == 50
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    drawn = torch.cat([stratified(rate, alive, 50, seed) for seed in range(40)]).bincount(minlength=200)
    assert drawn.min() > 0  # every feature can be drawn: 40 draws at 1 in 4 miss one with probability 1e-5
    assert drawn.max() < 25

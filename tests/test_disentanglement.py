"""Interchange interventions: planted dictionaries in a model that passes its embeddings through; a slow oracle."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from conftest import VOCABULARY, hooks_on, tiny
from torch import Tensor
from transformers import PreTrainedModel

from feature_survival.catalogue import Site
from feature_survival.forward import at_site, read_site
from feature_survival.metrics.attributes import NONE
from feature_survival.metrics.disentanglement import (
    Disentanglement,
    Interchange,
    measure_disentanglement,
    prepare_interchange,
)
from feature_survival.metrics.probes import FEWEST
from feature_survival.sae import Dictionary
from feature_survival.schema import InputError

WIDTH, WINDOWS, LENGTH = 32, 40, 12
KINDS = torch.arange(VOCABULARY)
ATTRIBUTES = {"letter": KINDS % 3, "space": KINDS // 3 % 2, "case": KINDS // 6 % 2}  # independent of each other
VALUES = {"letter": {0, 1, 2}, "space": {3, 4}, "case": {5, 6}}  # rows of DIRECTIONS
DIRECTIONS = torch.linalg.qr(torch.randn(WIDTH, 7, generator=torch.Generator().manual_seed(0))).Q.T
EMBEDDING = DIRECTIONS[ATTRIBUTES["letter"]] + DIRECTIONS[3 + ATTRIBUTES["space"]] + DIRECTIONS[5 + ATTRIBUTES["case"]]
FIT = torch.arange(WINDOWS) % 2 == 0


def windows(seed: int = 0) -> Tensor:
    drawn = torch.randint(1, VOCABULARY, (WINDOWS, LENGTH), generator=torch.Generator().manual_seed(seed))
    drawn[:, 0] = 0
    return drawn


def dictionary(dec: Tensor, k: int) -> Dictionary:
    return Dictionary(dec.T.clone(), torch.zeros(len(dec)), dec, torch.zeros(WIDTH), k)


@pytest.fixture
def through(llama: PreTrainedModel) -> PreTrainedModel:
    """A model whose residual stream is its embedding from the first block to the last."""
    llama.get_input_embeddings().weight.data.copy_(EMBEDDING)
    for block in llama.model.layers:
        block.self_attn.o_proj.weight.data.zero_()
        block.mlp.down_proj.weight.data.zero_()
    return llama


def prepare(model: PreTrainedModel, site: str, pairs: int = 90) -> Interchange:
    return prepare_interchange(model, Site.parse(site), windows(), FIT, ATTRIBUTES, pairs, batch=16)


def measure(
    model: PreTrainedModel, interchange: Interchange, sae: Dictionary, **counts: tuple[int, ...]
) -> Disentanglement:
    return measure_disentanglement(model, interchange, sae, sae.codes(interchange.x_fit), **counts)


@pytest.mark.parametrize("site", ["resid_post.0", "resid_post.1", "resid_post.2"])  # the last is read out where it is
def test_latents_that_are_the_attributes_move_each_alone(through: PreTrainedModel, site: str) -> None:
    found = measure(through, prepare(through, site), dictionary(DIRECTIONS, k=3), counts=(1, 2, 3))
    assert (found.score, found.cause, found.isolation) == (1, 1, 1)
    assert all(set(found.by_attribute[name].latents) <= values for name, values in VALUES.items())
    assert len(found.by_attribute["letter"].latents) == 3


def test_one_latent_for_everything_moves_everything(through: PreTrainedModel) -> None:
    kinds = F.normalize(EMBEDDING[:12], dim=1)  # a latent for each combination of attributes
    found = measure(through, prepare(through, "resid_post.1"), dictionary(kinds, k=1), counts=(12,))
    assert (found.score, found.cause, found.isolation) == (0.5, 1, 0)


def test_latents_that_write_elsewhere_move_nothing(through: PreTrainedModel) -> None:
    elsewhere = torch.linalg.svd(DIRECTIONS).Vh[7:]
    sae = dictionary(DIRECTIONS, k=3)._replace(W_dec=elsewhere[:7])
    found = measure(through, prepare(through, "resid_post.1"), sae)
    assert (found.score, found.cause, found.isolation) == (0.5, 0, 1)
    assert all(len(each.latents) == 1 for each in found.by_attribute.values())  # of equal scores, the fewest


def test_a_random_latent_moves_little(through: PreTrainedModel) -> None:
    dec = F.normalize(torch.randn(256, WIDTH, generator=torch.Generator().manual_seed(1)), dim=1)
    found = measure(through, prepare(through, "resid_post.1"), dictionary(dec, k=3), counts=(1,))
    assert found.cause < 0.2
    assert found.isolation > 0.95


def test_two_attributes_on_one_pair_of_latents_are_moved_together(through: PreTrainedModel) -> None:
    """Latents 3 to 6 are the four combinations of space and case; letters have latents of their own."""
    joint = [F.normalize(DIRECTIONS[3 + space] + DIRECTIONS[5 + case], dim=0) for space in (0, 1) for case in (0, 1)]
    sae = dictionary(torch.cat([DIRECTIONS[:3], torch.stack(joint)]), k=2)
    found = measure(through, prepare(through, "resid_post.1"), sae, counts=(3, 4)).by_attribute
    assert found["letter"][:2] == (1, 1) and set(found["letter"].latents) == {0, 1, 2}
    for name in ("space", "case"):  # the letter stays, the other of the two does not
        assert found[name][:2] == (1, 0.5) and set(found[name].latents) == {3, 4, 5, 6}


class Slow(NamedTuple):
    """Cause and isolation of given latents, by full forward passes of the base windows."""

    cause: float
    isolation: float


@torch.no_grad()
def slow(
    model: PreTrainedModel, interchange: Interchange, sae: Dictionary, moved: str, latents: tuple[int, ...]
) -> Slow:
    pairs, site, tokens = interchange.test, interchange.site, windows()[~FIT]
    x = read_site(model, site, tokens)
    places = [divmod(int((x - base).norm(dim=2).argmin()), LENGTH) for base in pairs.base]

    def swap(activations: Tensor) -> Tensor:
        out = activations.clone()
        for row, ((_, position), source) in enumerate(zip(places, pairs.source, strict=True)):
            code, other = (torch.zeros(len(sae.b_enc)) for _ in range(2))
            for into, at in ((code, out[row, position]), (other, source)):
                values, active = sae.encode(at[None])
                into[active[0]] = values[0]
            for i in latents:
                out[row, position] += (other[i] - code[i]) * sae.W_dec[i]
        return out

    with at_site(model, site, swap):
        last = read_site(model, Site("resid_post", 2), tokens[[window for window, _ in places]])
    after = torch.stack([last[row, position] for row, (_, position) in enumerate(places)])
    shares = {}
    for name, probe in interchange.readouts.items():
        read = probe.predict(after)
        counted = [
            int(read[i] == (source if name == moved else base))
            for i, (base, source) in enumerate(pairs.labels[name].T.tolist())
            if base != source and NONE not in (base, source)
        ]
        shares[name] = sum(counted) / len(counted)
    cause = shares.pop(moved)
    return Slow(cause, sum(shares.values()) / len(shares))


@pytest.mark.parametrize("site", ["resid_post.0", "resid_post.2", "mlp_out.0", "mlp_out.1", "attn_out.1", "attn_z.0"])
def test_cause_and_isolation_agree_with_full_passes(model: PreTrainedModel, site: str) -> None:
    if type(model).__name__ == "GPTNeoXForCausalLM" and site == "mlp_out.0":
        site = "mlp_out.2"  # its first MLP sees the token alone: the slow way could not tell positions apart
    interchange = prepare(model, site)
    generator = torch.Generator().manual_seed(0)
    x = interchange.x_fit
    encoder = torch.randn(WIDTH, 48, generator=generator)
    rows = F.normalize(torch.randn(48, WIDTH, generator=generator), dim=1)
    sae = Dictionary(encoder, -x.mean(0) @ encoder, x.norm(dim=1).mean() * rows, x.mean(0), k=6)
    found = measure(model, interchange, sae, counts=(4,))
    assert list(found.by_attribute) == list(interchange.readouts)
    for name, each in found.by_attribute.items():
        assert each[:2] == pytest.approx(slow(model, interchange, sae, name, each.latents), abs=1e-9)
    assert 0 < found.cause < 1 and 0 < found.isolation < 1
    assert measure(model, interchange, sae, counts=(4,)) == found  # nothing prepared was used up
    assert hooks_on(model) == 0


def test_pairs_differ_in_each_attribute_and_come_from_their_half(through: PreTrainedModel) -> None:
    tokens = windows()
    interchange = prepare(through, "resid_post.1")
    for pairs, half in ((interchange.fit, FIT), (interchange.test, ~FIT)):
        there = set(tokens[half, 1:].flatten().tolist())
        assert set(pairs.inputs["tokens"].flatten().tolist()) <= there
        for i, name in enumerate(ATTRIBUTES):
            base, source = pairs.labels[name]
            assert torch.equal(ATTRIBUTES[name][pairs.inputs["tokens"][:, 0]], base)
            assert (base != source)[30 * i : 30 * (i + 1)].all()
            assert len(base[30 * i : 30 * (i + 1)].unique()) == len(VALUES[name])


def test_an_attribute_is_reduced_to_its_most_frequent_classes(through: PreTrainedModel) -> None:
    many = {**ATTRIBUTES, "kind": KINDS % 12}
    interchange = prepare_interchange(through, Site("resid_post", 1), windows(), FIT, many, pairs=120)
    assert interchange.readouts["kind"].bias.shape == (8,)
    assert set(interchange.labels_fit["kind"].tolist()) == {NONE, *range(8)}


def test_too_few_attributes_are_an_error_of_one_line(through: PreTrainedModel) -> None:
    constant = {"space": ATTRIBUTES["space"], "never": torch.zeros_like(KINDS), "absent": torch.full_like(KINDS, NONE)}
    with pytest.raises(InputError, match=rf"resid_post.1: {FEWEST} pairs .* found \['space'\]"):
        prepare_interchange(through, Site("resid_post", 1), windows(), FIT, constant)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny("Gemma3ForCausalLM")
    before = model(windows()).logits
    interchange = prepare(model, "resid_post.1")
    measure(model, interchange, dictionary(DIRECTIONS, k=3))
    assert torch.equal(model(windows()).logits, before)

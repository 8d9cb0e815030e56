"""Every family in a hub's layout - bfloat16, sharded with an index, tied and untied embeddings - through the real path:
load, prune, cache, splice."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import BLOCKS, FAMILIES, entry, truncate
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from feature_survival.activations import Shards, write_shards
from feature_survival.artifacts import Cell, read_json
from feature_survival.catalogue import Site
from feature_survival.compression.calibrate import compress
from feature_survival.compression.condition import load_compressed, write_condition
from feature_survival.forward import read_site
from feature_survival.metrics.language import measure_splices
from feature_survival.models import ADAPTERS, build, load, prunable_weights
from feature_survival.recipes import Recipe
from feature_survival.schema import InputError
from feature_survival.text import Vocabulary, read_vocabulary, windows

POINTS = ["resid_post", "mlp_out", "attn_out", "attn_z"]


class Published(NamedTuple):
    """A checkpoint as a hub has it, and the model it was saved from."""

    cell: Cell
    model: PreTrainedModel
    tied: bool


@pytest.fixture(params=[(family, tied) for family in FAMILIES for tied in (True, False)], ids=str)
def published(request: pytest.FixtureRequest, tmp_path: Path, tokenizer: Tokenizer) -> Published:
    family, tied = request.param
    spec = entry(family)
    torch.manual_seed(0)
    model = build(spec.model_copy(update={"config": {**spec.config, "tie_word_embeddings": tied}}))
    model = model.eval().requires_grad_(False).to(torch.bfloat16)
    cell = Cell(tmp_path, "tiny", "wanda-50")
    model.save_pretrained(cell.base, max_shard_size="20KB")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>").save_pretrained(cell.base)
    return Published(cell, model, tied)


def test_every_adapter_is_tested_through_its_real_class() -> None:
    assert set(FAMILIES) == set(ADAPTERS)


def test_a_published_checkpoint_loads_in_its_own_type_with_its_embeddings_tied_or_not(published: Published) -> None:
    shards = set(read_json(published.cell.base / "model.safetensors.index.json")["weight_map"].values())
    assert len(shards) > 2
    loaded = load(published.cell.base, "auto")
    assert type(loaded) is type(published.model)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    shared = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert shared == published.tied
    for name, parameter in published.model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name
    assert load(published.cell.base, "float32").dtype == torch.float32


@pytest.mark.parametrize("point", POINTS)
def test_a_site_of_a_published_checkpoint_is_read_in_float32_as_the_model_has_it(
    published: Published, tokens: Tensor, point: str
) -> None:
    model = load(published.cell.base, "auto")
    found = read_site(model, Site(point, 1), tokens)
    assert found.dtype == torch.float32 and found.shape == (6, 16, 32)
    if point == "resid_post":
        expected = model(tokens, output_hidden_states=True).hidden_states
        assert torch.equal(found, expected[2].float())
        for block in range(BLOCKS - 1):
            assert torch.equal(read_site(model, Site(point, block), tokens), expected[block + 1].float())


def test_a_published_checkpoint_is_pruned_cached_and_spliced(
    published: Published, tokens: Tensor, tmp_path: Path
) -> None:
    cell, site = published.cell, Site("resid_post", 1)
    model = load(cell.base, "auto")
    cell.prune.mkdir(parents=True)
    write_condition(compress(model, Recipe("wanda", 0.5), tokens, 4), prunable_weights(model), cell.prune)

    pruned = load_compressed(cell, "auto")
    assert pruned.dtype == torch.bfloat16
    weights = prunable_weights(pruned)
    dense = {id(parameter): name for name, parameter in published.model.named_parameters()}
    for name, weight in prunable_weights(published.model).items():
        assert (weights[name] == 0).double().mean() == 0.5, name
        kept = weights[name] != 0
        assert torch.equal(weights[name][kept], weight[kept]), name
    pointers = {weight.data_ptr() for weight in weights.values()}
    others = [name for name, parameter in pruned.named_parameters() if parameter.data_ptr() not in pointers]
    assert len(others) == len(dense) - len(weights)
    for name in others:
        assert torch.equal(pruned.get_parameter(name), published.model.get_parameter(name)), name

    expected = pruned(tokens, output_hidden_states=True).hidden_states[2][:, 1:].flatten(0, 1)
    write_shards(pruned, site, tokens, 6, 6, tmp_path, "sae")
    assert torch.equal(torch.cat(list(Shards(tmp_path, "sae").batches(1000))), expected.float())

    replacements = {"same": torch.clone, "zero": torch.zeros_like}
    plain, spliced = measure_splices(pruned, site, replacements, tokens, 6)
    assert spliced["same"] == (plain, 0.0)
    assert spliced["zero"].kl > 1e-4
    logits = pruned(tokens).logits.float().log_softmax(-1)[:, :-1]
    assert plain == pytest.approx(-logits.gather(-1, tokens[:, 1:, None]).double().mean().item(), rel=1e-6)


def test_a_corrupt_shard_is_named(published: Published) -> None:
    shard = sorted(published.cell.base.glob("model-0000*.safetensors"))[1]
    truncate(shard)
    with pytest.raises(InputError, match=f"{shard.name}: not a loadable checkpoint") as refused:
        load(published.cell.base, "auto")
    assert "\n" not in str(refused.value)


def test_windows_are_led_by_the_checkpoints_own_bos(published: Published, corpus: Path) -> None:
    found = windows(corpus, "sae", read_vocabulary(published.cell.base), 16, 4)
    assert torch.equal(
        found, windows(corpus, "sae", Vocabulary(read_vocabulary(published.cell.base).tokenizer, 0), 16, 4)
    )
    assert (found[:, 0] == 0).all()

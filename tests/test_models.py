"""Adapters: blocks and sites of all families, and refusal of what cannot be loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import BLOCKS, FAMILIES, entry, hooks_on, save_as_cell, truncate
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from feature_survival.config import InputError, Site
from feature_survival.models import (
    adapter_for,
    at_site,
    blocks,
    build,
    cross_entropy,
    load,
    prunable_weights,
    read_site,
)

POINTS = ["resid_post", "mlp_out", "attn_out", "attn_z"]


def final_norm(model: PreTrainedModel) -> nn.Module:
    return model.get_submodule("transformer.ln_f" if type(model).__name__ == "GPT2LMHeadModel" else "model.norm")


def test_early_stopped_activations_equal_output_hidden_states(model: PreTrainedModel, tokens: Tensor) -> None:
    expected = model(tokens, output_hidden_states=True).hidden_states
    for block in range(BLOCKS - 1):
        assert torch.equal(read_site(model, Site("resid_post", block), tokens), expected[block + 1])
    last = read_site(model, Site("resid_post", BLOCKS - 1), tokens)
    assert torch.equal(final_norm(model)(last), expected[-1])


@pytest.mark.parametrize("point", POINTS)
def test_reading_a_site_runs_no_later_block_and_leaves_no_hook(
    model: PreTrainedModel, tokens: Tensor, point: str
) -> None:
    ran = []
    counters = [
        block.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
        for number, block in enumerate(blocks(model))
    ]
    counters.append(final_norm(model).register_forward_pre_hook(lambda *_: ran.append("norm")))
    read_site(model, Site(point, 1), tokens)
    assert ran == [0, 1]
    for counter in counters:
        counter.remove()
    assert hooks_on(model) == 0


def test_attention_and_mlp_outputs_added_to_the_residual_make_the_next_one(
    model: PreTrainedModel, tokens: Tensor
) -> None:
    before = read_site(model, Site("resid_post", 0), tokens)
    attention = read_site(model, Site("attn_out", 1), tokens)
    mlp = read_site(model, Site("mlp_out", 1), tokens)
    torch.testing.assert_close(before + attention + mlp, read_site(model, Site("resid_post", 1), tokens))


def test_the_output_projection_of_attn_z_is_the_attention_output(model: PreTrainedModel, tokens: Tensor) -> None:
    block = blocks(model)[1]
    family = type(model).__name__
    projection = block.get_submodule("attn.c_proj" if family == "GPT2LMHeadModel" else "self_attn.o_proj")
    projected = projection(read_site(model, Site("attn_z", 1), tokens))
    if family.startswith("Gemma"):
        projected = block.get_submodule("post_attention_layernorm")(projected)
    torch.testing.assert_close(projected, read_site(model, Site("attn_out", 1), tokens))


@pytest.mark.parametrize("point", POINTS)
def test_splicing_in_the_same_activations_changes_nothing_and_others_do(
    model: PreTrainedModel, tokens: Tensor, point: str
) -> None:
    plain = cross_entropy(model, tokens)
    for visit, same in ((torch.clone, True), (lambda _: None, True), (torch.zeros_like, False)):
        with at_site(model, Site(point, 1), visit):  # type: ignore[arg-type]
            assert torch.equal(cross_entropy(model, tokens), plain) == same
    assert torch.equal(cross_entropy(model, tokens), plain)


def test_what_is_spliced_in_is_all_that_the_rest_of_the_model_sees(model: PreTrainedModel, tokens: Tensor) -> None:
    with at_site(model, Site("resid_post", BLOCKS - 1), torch.ones_like):
        logits = model(tokens).logits
    torch.testing.assert_close(logits, logits[:1, :1].expand_as(logits))


def test_hooks_are_gone_after_an_error_in_the_block(llama: PreTrainedModel) -> None:
    with pytest.raises(KeyError), at_site(llama, Site("resid_post", 0), torch.clone):
        raise KeyError
    assert hooks_on(llama) == 0


def test_cross_entropy_is_the_next_token_log_probability(model: PreTrainedModel, tokens: Tensor) -> None:
    found = cross_entropy(model, tokens)
    assert found.shape == (6, 15)
    log_probabilities = model(tokens).logits.log_softmax(-1)
    assert found[2, 4].item() == pytest.approx(-log_probabilities[2, 4, tokens[2, 5]].item(), rel=1e-5)
    assert found.mean().item() == pytest.approx(model(tokens, labels=tokens).loss.item(), rel=1e-5)


def test_prunable_weights_are_writable_views_of_the_model(model: PreTrainedModel, tokens: Tensor) -> None:
    weights = prunable_weights(model)
    storages = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert all(weight.untyped_storage().data_ptr() in storages for weight in weights.values())
    kinds = ("embed", "lm_head", "norm", "ln_", "wte", "wpe")
    assert not [name for name in weights if any(kind in name for kind in kinds)]


@pytest.mark.parametrize("point", POINTS)
def test_a_site_beyond_the_last_block_is_refused(llama: PreTrainedModel, tokens: Tensor, point: str) -> None:
    with pytest.raises(InputError, match=rf"site {point}\.3 is beyond the last block; allowed: {point}\.0 to \.2"):
        read_site(llama, Site(point, BLOCKS), tokens)


def test_an_architecture_without_adapter_is_refused_by_name_with_the_file_to_extend() -> None:
    message = "'MistralForCausalLM' has no adapter; add a line to ADAPTERS in src/feature_survival/models.py"
    with pytest.raises(InputError, match=message):
        adapter_for("MistralForCausalLM")
    with pytest.raises(InputError, match=message):
        build(entry("LlamaForCausalLM").model_copy(update={"architecture": "MistralForCausalLM"}))


def test_a_saved_model_loads_as_the_same_function_ready_for_measuring(
    model: PreTrainedModel, tokens: Tensor, tmp_path: Path
) -> None:
    loaded = load(save_as_cell(model, tmp_path).base)
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert loaded.dtype == torch.float32
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_a_model_built_twice_from_one_seed_is_the_same() -> None:
    for architecture in FAMILIES:
        first, second = (build_seeded(architecture) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def build_seeded(architecture: str) -> PreTrainedModel:
    torch.manual_seed(3)
    return build(entry(architecture))


def drop_a_tensor(weights: Path) -> None:
    tensors = load_file(weights)
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, weights, metadata={"format": "pt"})


def change_a_shape(weights: Path) -> None:
    tensors = load_file(weights)
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.ones(40, 32)
    save_file(tensors, weights, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "not a loadable checkpoint"),
        (lambda weights: weights.write_text("an html page, say"), "not a loadable checkpoint"),
        (lambda weights: weights.write_bytes(b""), "not a loadable checkpoint"),
        (Path.unlink, "not a loadable checkpoint"),
        (drop_a_tensor, "lacks 1 tensors of LlamaForCausalLM, first 'model.layers.1.mlp.up_proj.weight'"),
        (change_a_shape, "not a loadable checkpoint"),
    ],
)
def test_a_truncated_foreign_or_incomplete_checkpoint_is_refused_in_one_line(
    llama: PreTrainedModel, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    base = save_as_cell(llama, tmp_path).base
    damage(base / "model.safetensors")
    with pytest.raises(InputError) as refused:
        load(base)
    assert message in str(refused.value)
    assert str(base) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["[]", "{", '{"architectures": ["MistralForCausalLM"]}', "{}", '{"architectures": 3}'])
def test_a_foreign_model_config_is_refused(llama: PreTrainedModel, tmp_path: Path, text: str) -> None:
    base = save_as_cell(llama, tmp_path).base
    (base / "config.json").write_text(text)
    with pytest.raises(InputError):
        load(base)

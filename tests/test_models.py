"""Adapters: blocks and sites of all families, and refusal of what cannot be loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import BLOCKS, FAMILIES, VOCABULARY, entry, hooks_on, save_as_cell, truncate
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from feature_survival.catalogue import Site
from feature_survival.forward import (
    at_site,
    cross_entropy,
    head_only_at,
    log_probabilities,
    read_site,
    start_of,
    starting_at,
)
from feature_survival.models import (
    adapter_for,
    blocks,
    build,
    compute_device,
    is_out_of_memory,
    load,
    prunable_weights,
    use_device,
)
from feature_survival.schema import InputError

POINTS = ["resid_post", "mlp_out", "attn_out", "attn_z"]
FINAL_NORM = {
    "GPT2LMHeadModel": "transformer.ln_f",
    "GPTNeoXForCausalLM": "gpt_neox.final_layer_norm",
    "OPTForCausalLM": "model.decoder.final_layer_norm",
}
SITES = ["resid_post.0", "resid_post.1", "resid_post.2", "mlp_out.0", "mlp_out.1", "attn_out.1", "attn_z.1"]


def final_norm(model: PreTrainedModel) -> nn.Module:
    return model.get_submodule(FINAL_NORM.get(type(model).__name__, "model.norm"))


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
    projection = block.get_submodule(adapter_for(type(model).__name__).attn_projection)
    projected = projection(read_site(model, Site("attn_z", 1), tokens))
    if type(model).__name__.startswith("Gemma"):
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


def record_start(model: PreTrainedModel, site: Site, tokens: Tensor) -> tuple[Site | None, Tensor]:
    start = start_of(site)
    return start, torch.empty(0) if start is None else read_site(model, start, tokens)


@pytest.mark.parametrize(
    ("site", "start"),
    [
        ("resid_post.0", "resid_post.0"),
        ("resid_post.2", "resid_post.2"),
        ("mlp_out.2", "resid_post.1"),
        ("attn_out.1", "resid_post.0"),
        ("attn_z.1", "resid_post.0"),
        ("mlp_out.0", None),
        ("attn_z.0", None),
    ],
)
def test_a_pass_starts_at_the_last_residual_stream_that_a_site_does_not_change(site: str, start: str | None) -> None:
    assert start_of(Site.parse(site)) == (None if start is None else Site.parse(start))


@pytest.mark.parametrize("name", SITES)
def test_a_pass_resumed_from_its_start_predicts_what_the_full_one_does(
    model: PreTrainedModel, tokens: Tensor, name: str
) -> None:
    site, change = Site.parse(name), torch.randn(32, generator=torch.Generator().manual_seed(1))
    full = log_probabilities(model, tokens)
    with at_site(model, site, lambda x: x + change):
        full_changed = log_probabilities(model, tokens)
    assert (full_changed - full).abs().max() > 0.01
    with starting_at(model, *record_start(model, site, tokens)):
        torch.testing.assert_close(log_probabilities(model, tokens), full, rtol=0, atol=1e-6)
        with at_site(model, site, lambda x: x + change):
            torch.testing.assert_close(log_probabilities(model, tokens), full_changed, rtol=0, atol=1e-6)
    assert torch.equal(log_probabilities(model, tokens), full)


@pytest.mark.parametrize("name", SITES)
def test_a_resumed_pass_runs_only_the_blocks_behind_its_start(
    model: PreTrainedModel, tokens: Tensor, name: str
) -> None:
    start, hidden = record_start(model, Site.parse(name), tokens)
    ran: list[int] = []
    counters = [
        next(block.children()).register_forward_pre_hook(lambda *_, number=number: ran.append(number))
        for number, block in enumerate(blocks(model))
    ]
    with starting_at(model, start, hidden):
        log_probabilities(model, tokens)
    assert ran == list(range(0 if start is None else start.block + 1, BLOCKS))
    for counter in counters:
        counter.remove()


def test_a_resumed_pass_goes_on_from_what_it_is_given(model: PreTrainedModel, tokens: Tensor) -> None:
    last = Site("resid_post", BLOCKS - 1)
    hidden = torch.randn(6, 16, 32, generator=torch.Generator().manual_seed(1))
    with at_site(model, last, lambda _: hidden):
        expected = log_probabilities(model, tokens)
    with starting_at(model, last, hidden):
        torch.testing.assert_close(log_probabilities(model, tokens), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows", [[0], [3, 3, 1]])
def test_a_resumed_batch_may_hold_any_windows_again(model: PreTrainedModel, tokens: Tensor, rows: list[int]) -> None:
    site = Site("resid_post", 0)
    hidden = read_site(model, site, tokens)
    with starting_at(model, site, hidden[rows]):
        found = log_probabilities(model, tokens[rows])
    torch.testing.assert_close(found, log_probabilities(model, tokens)[rows], rtol=0, atol=1e-5)


@pytest.mark.parametrize("error", [False, True])
def test_no_replaced_forward_and_no_hook_outlives_its_block(
    model: PreTrainedModel, tokens: Tensor, error: bool
) -> None:
    before = log_probabilities(model, tokens)
    site = Site("resid_post", 1)
    hidden, keep = torch.zeros(6, 16, 32), torch.ones(6, 16, dtype=torch.bool)
    try:
        with starting_at(model, site, hidden), head_only_at(model, keep):
            assert not torch.equal(log_probabilities(model, tokens), before.flatten(0, 1))
            if error:
                raise KeyError
    except KeyError:
        pass
    assert hooks_on(model) == 0
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]
    assert torch.equal(log_probabilities(model, tokens), before)


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_logits_made_at_some_positions_only_are_rows_of_the_full_ones(
    model: PreTrainedModel, tokens: Tensor, share: float
) -> None:
    keep = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0)) <= share
    full = model(tokens).logits
    if type(model).__name__ == "Gemma2ForCausalLM":
        assert 2 < full.abs().max() < 3  # soft-capped at 3; nearly all of the way
    with head_only_at(model, keep):
        assert model(tokens).logits.shape == (int(keep.sum()), VOCABULARY)
        torch.testing.assert_close(model(tokens).logits, full[keep], rtol=0, atol=1e-5)
        torch.testing.assert_close(log_probabilities(model, tokens), full[keep].log_softmax(-1), rtol=0, atol=1e-5)


def test_log_probabilities_are_those_of_the_logits(model: PreTrainedModel, tokens: Tensor) -> None:
    found = log_probabilities(model, tokens)
    torch.testing.assert_close(found, model(tokens).logits.log_softmax(-1), rtol=0, atol=1e-6)
    entropy = -found[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    torch.testing.assert_close(entropy, cross_entropy(model, tokens), rtol=0, atol=1e-5)


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
    message = "'BloomForCausalLM' has no adapter; add a line to ADAPTERS in src/feature_survival/models.py"
    with pytest.raises(InputError, match=message):
        adapter_for("BloomForCausalLM")
    with pytest.raises(InputError, match=message):
        build(entry("LlamaForCausalLM").model_copy(update={"architecture": "BloomForCausalLM"}))


def test_a_saved_model_loads_as_the_same_function_ready_for_measuring(
    model: PreTrainedModel, tokens: Tensor, tmp_path: Path
) -> None:
    loaded = load(save_as_cell(model, tmp_path).base, "float32")
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert loaded.dtype == torch.float32
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_a_device_that_is_not_there_is_refused_and_the_cpu_taken_when_asked() -> None:
    with pytest.raises(
        InputError, match=r"device: 'cuda:1' asked, this machine has no CUDA device; allowed: auto, cpu"
    ):
        use_device("cuda:1")
    use_device("cpu")
    assert compute_device() == torch.device("cpu")
    use_device("auto")


@pytest.mark.parametrize(
    ("error", "out"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"), True),
        (MemoryError(), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("shape mismatch"), False),
    ],
)
def test_every_way_of_saying_that_memory_is_short_is_known(error: Exception, out: bool) -> None:
    assert is_out_of_memory(error) == out


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
        load(base, "float32")
    assert message in str(refused.value)
    assert str(base) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["[]", "{", '{"architectures": ["BloomForCausalLM"]}', "{}", '{"architectures": 3}'])
def test_a_foreign_model_config_is_refused(llama: PreTrainedModel, tmp_path: Path, text: str) -> None:
    base = save_as_cell(llama, tmp_path).base
    (base / "config.json").write_text(text)
    with pytest.raises(InputError):
        load(base, "float32")

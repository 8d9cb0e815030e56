"""RQ3's splice, L0 and FVU are SAEBench's core metrics, on a GPT-2 and a Llama and an SAE read from disk.

The definitions (sae-bench 0.6.0, `sae_bench.evals.core`; Karvonen et al., arXiv 2503.09532) are written out here in
plain torch; the last test holds them against the package, where it can be imported. Neither side splices <bos>. Over
the same positions all agree. What remains, with its size on mini-llama3 (48 windows of 128):

- SAEBench leaves the prediction made at <bos> out of its means (cross-entropy 3.477, ours 3.500), and takes the
  divergence at the last position in (0.0337, ours 0.0335).
- Its zero ablation also zeroes <bos>, ours leaves position 0 alone. At mlp_out.2 the CE-loss score is 0.5854, ours
  0.5861; at resid_post.2 the ablated model's cross-entropy is 7.62, ours 8.85, and 1 - score 1.30 of ours (in
  mini-gpt2 0.91).
- Its `explained_variance` is meant as 1 - FVU, but subtracts the squared mean square of all coordinates where a
  variance asks for each coordinate's squared mean; it depends on the activations' unit (0.542, where 1 - FVU is 0.514).
  SAELens mended the same line (pull request 665). Its `explained_variance_legacy`, the paper's, is a mean of ratios
  where FVU is one ratio of means (0.474).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from conftest import save_as_cell, tiny
from torch import Tensor

from feature_survival.catalogue import Site
from feature_survival.forward import at_site, cross_entropy, read_site
from feature_survival.metrics.language import loss_recovered, measure_splices
from feature_survival.metrics.reconstruction import measure_reconstruction
from feature_survival.models import load
from feature_survival.sae import Dictionary

SITE = Site("resid_post", 1)
MODULES = {"GPT2LMHeadModel": "transformer.h.1", "LlamaForCausalLM": "model.layers.1"}
BOS = 0
TOLERANCE = 1e-3


class Saved(NamedTuple):
    """A checkpoint, an SAE of its site in SAELens's format, and windows of tokens."""

    base: Path
    sae: Path
    module: str
    tokens: Tensor


@pytest.fixture(params=MODULES)
def saved(request: pytest.FixtureRequest, tokens: Tensor, tmp_path: Path) -> Saved:
    from sae_lens import TopKSAE, TopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    model, module = tiny(request.param), MODULES[request.param]
    torch.manual_seed(0)
    metadata = SAEMetadata(model_name="tiny", hook_name=module)
    sae = TopKSAE(TopKSAEConfig(d_in=32, d_sae=128, k=8, apply_b_dec_to_input=False, metadata=metadata))
    mean = read_site(model, SITE, tokens).mean((0, 1))
    with torch.no_grad():
        sae.b_dec.copy_(mean)
        sae.b_enc.copy_(-mean @ sae.W_enc + 0.01 * torch.randn(128))
    sae.save_model(tmp_path / "sae")
    return Saved(save_as_cell(model, tmp_path).base, tmp_path / "sae", module, tokens)


def sae_of(saved: Saved) -> Any:
    from sae_lens import SAE

    return SAE.load_from_disk(saved.sae)


def model_of(saved: Saved) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(saved.base, dtype=torch.float32).eval()


class Tokens(NamedTuple):
    """Which positions, bool [windows, position], a convention zeroes under ablation and whose predictions it scores."""

    ablated: Tensor
    scored: Tensor


def of_sae_bench(tokens: Tensor) -> Tokens:
    return Tokens(ablated=torch.ones_like(tokens, dtype=torch.bool), scored=tokens != BOS)


def of_ours(tokens: Tensor) -> Tokens:
    """All predictions of a token of the window, <bos>'s included; <bos> keeps its own activations."""
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    return Tokens(ablated=tokens != BOS, scored=positions < tokens.shape[1] - 1)


@torch.no_grad()
def defined(saved: Saved, at: Tokens) -> dict[str, float]:
    """SAEBench's core metrics under its names, of all windows in one batch; FVU and what it is made of."""
    model, sae, tokens = model_of(saved), sae_of(saved), saved.tokens
    ordinary, read = tokens != BOS, []

    def logits(change: Callable[[Tensor], Tensor]) -> Tensor:
        def hook(_: object, __: object, output: Any) -> Any:
            whole = isinstance(output, Tensor)
            changed = change(output if whole else output[0])
            return changed if whole else (changed, *output[1:])

        handle = model.get_submodule(saved.module).register_forward_hook(hook)
        try:
            return model(tokens).logits
        finally:
            handle.remove()

    def observe(x: Tensor) -> Tensor:
        read.append(x)
        return x

    plain = logits(observe).log_softmax(-1)
    spliced = logits(lambda x: torch.where(ordinary[..., None], sae.decode(sae.encode(x)), x)).log_softmax(-1)
    ablated = logits(lambda x: x * ~at.ablated[..., None]).log_softmax(-1)

    def entropy(log_probabilities: Tensor) -> float:
        chosen = log_probabilities[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
        return -chosen[at.scored[:, :-1]].mean().item()

    def kl(found: Tensor) -> float:
        return (plain.exp() * (plain - found)).sum(-1)[at.scored].mean().item()

    x = read[0][ordinary]
    codes = sae.encode(x)
    error = (x - sae.decode(codes)).square().sum(1)
    square = x.square().sum(1).mean()
    without, with_sae, with_ablation = entropy(plain), entropy(spliced), entropy(ablated)
    return {
        "ce_loss_without_sae": without,
        "ce_loss_with_sae": with_sae,
        "ce_loss_with_ablation": with_ablation,
        "ce_loss_score": (with_ablation - with_sae) / (with_ablation - without),
        "kl_div_with_sae": kl(spliced),
        "kl_div_with_ablation": kl(ablated),
        "l0": (codes != 0).sum(1).float().mean().item(),
        "explained_variance": (1 - error.mean() / (square - (square / x.shape[1]) ** 2)).item(),
        "explained_variance_legacy": (1 - error / (x - x.mean(0)).square().sum(1)).mean().item(),
        "fvu": (error.mean() / (square - x.mean(0).square().sum())).item(),
        "mean_square": square.item(),
        "variance": (square - x.mean(0).square().sum()).item(),
    }


def ours(saved: Saved) -> dict[str, float]:
    """The same names, from this package's own functions."""
    model, sae, tokens = load(saved.base, "float32"), Dictionary.read(saved.sae), saved.tokens
    plain, found = measure_splices(model, SITE, {"sae": sae.reconstruct, "zero": torch.zeros_like}, tokens, 4)
    fit = measure_reconstruction(sae, [read_site(model, SITE, tokens)[:, 1:].flatten(0, 1)])
    return {
        "ce_loss_without_sae": plain,
        "ce_loss_with_sae": found["sae"].cross_entropy,
        "ce_loss_with_ablation": found["zero"].cross_entropy,
        "ce_loss_score": loss_recovered(plain, found["zero"].cross_entropy, found["sae"].cross_entropy),
        "kl_div_with_sae": found["sae"].kl,
        "kl_div_with_ablation": found["zero"].kl,
        "l0": fit.l0,
        "fvu": fit.fvu,
    }


def test_over_the_same_tokens_every_core_metric_is_sae_benchs(saved: Saved) -> None:
    found, expected = ours(saved), defined(saved, of_ours(saved.tokens))
    assert found == pytest.approx({name: expected[name] for name in found}, abs=TOLERANCE)
    assert abs(found["ce_loss_with_sae"] - found["ce_loss_without_sae"]) > 10 * TOLERANCE
    assert found["kl_div_with_ablation"] - found["kl_div_with_sae"] > 10 * TOLERANCE


def test_of_the_conventions_only_position_zero_and_the_last_one_differ(saved: Saved) -> None:
    found, theirs = ours(saved), defined(saved, of_sae_bench(saved.tokens))
    predictions = saved.tokens.shape[1] - 1
    cost = found["ce_loss_with_sae"] - found["ce_loss_without_sae"]
    # The prediction made at <bos>, which no splice changes, is one of ours and none of theirs.
    assert cost * predictions / (predictions - 1) == pytest.approx(
        theirs["ce_loss_with_sae"] - theirs["ce_loss_without_sae"], abs=TOLERANCE
    )
    model = load(saved.base, "float32")
    with torch.no_grad(), at_site(model, SITE, torch.zeros_like):
        everywhere = cross_entropy(model, saved.tokens)[:, 1:].mean().item()
    assert everywhere == pytest.approx(theirs["ce_loss_with_ablation"], abs=TOLERANCE)


def test_sae_benchs_explained_variance_is_ours_over_another_variance(saved: Saved) -> None:
    found, theirs = ours(saved), defined(saved, of_sae_bench(saved.tokens))
    square = theirs["mean_square"]
    coded = found["fvu"] * theirs["variance"] / (square - (square / 32) ** 2)
    assert 1 - coded == pytest.approx(theirs["explained_variance"], abs=TOLERANCE)


def test_the_definitions_written_here_are_the_packages(saved: Saved) -> None:
    core = pytest.importorskip("sae_bench.evals.core.main")
    from sae_bench.sae_bench_utils.general_utils import load_and_format_sae
    from sae_lens.load_model import HookedProxyLM

    store = SimpleNamespace(
        store_batch_size_prompts=len(saved.tokens),
        context_size=saved.tokens.shape[1],
        get_batch_tokens=lambda _: saved.tokens,
        reset_input_dataset=lambda: None,
    )
    config = core.CoreEvalConfig(
        batch_size_prompts=len(saved.tokens),
        n_eval_reconstruction_batches=1,
        compute_kl=True,
        compute_ce_loss=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        exclude_special_tokens_from_reconstruction=True,
    )
    _, sae, _ = load_and_format_sae("saved", sae_of(saved), "cpu")
    model: Any = HookedProxyLM(model_of(saved), tokenizer=None)  # type: ignore[arg-type]
    groups, _ = core.run_evals(sae, store, model, config, ignore_tokens={BOS})
    found = {name: value for group in groups.values() for name, value in group.items()}
    expected = defined(saved, of_sae_bench(saved.tokens))
    shared = sorted(found.keys() & expected.keys())
    assert len(shared) == 9
    assert [found[name] for name in shared] == pytest.approx([expected[name] for name in shared], abs=1e-4)

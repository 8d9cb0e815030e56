"""RQ3's splice costs what sae-lens's own hooked evaluation says it costs, on a Llama and an SAE read from disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_as_cell
from torch import Tensor
from transformers import PreTrainedModel

from feature_survival.catalogue import Site
from feature_survival.forward import read_site
from feature_survival.metrics.language import measure_splices
from feature_survival.models import load
from feature_survival.sae import Dictionary

SITE = Site("resid_post", 1)


@pytest.fixture
def base(llama: PreTrainedModel, tmp_path: Path) -> Path:
    """A saved checkpoint."""
    return save_as_cell(llama, tmp_path).base


@pytest.fixture
def saved_sae(llama: PreTrainedModel, tokens: Tensor, tmp_path: Path) -> Path:
    """A random TopK SAE about the site's mean, written by sae-lens."""
    from sae_lens import TopKSAE, TopKSAEConfig

    torch.manual_seed(0)
    sae = TopKSAE(TopKSAEConfig(d_in=32, d_sae=128, k=8, apply_b_dec_to_input=False, normalize_activations="none"))
    mean = read_site(llama, SITE, tokens).mean((0, 1))
    with torch.no_grad():
        sae.b_dec.copy_(mean)
        sae.b_enc.copy_(-mean @ sae.W_enc + 0.01 * torch.randn(128))
    sae.save_model(tmp_path / "sae")
    return tmp_path / "sae"


def evaluated_by_sae_lens(base: Path, sae_folder: Path, tokens: Tensor) -> dict[str, Any]:
    """Per-token losses and divergences; token 0 stands at position 0 alone, which so keeps its own activations."""
    from sae_lens import SAE
    from sae_lens.evals import get_recons_loss
    from sae_lens.load_model import HookedProxyLM
    from sae_lens.training.activation_scaler import ActivationScaler
    from transformers import LlamaForCausalLM

    hooked = HookedProxyLM(LlamaForCausalLM.from_pretrained(base).eval(), tokenizer=None)  # type: ignore[arg-type]
    with torch.no_grad():
        return get_recons_loss(
            SAE.load_from_disk(sae_folder),
            hooked,
            activation_scaler=ActivationScaler(),
            batch_tokens=tokens,
            compute_kl=True,
            compute_ce_loss=True,
            ignore_tokens=[0],
            hook_name="model.layers.1",
        )


def test_a_splice_costs_what_sae_lens_says_it_costs(base: Path, saved_sae: Path, tokens: Tensor) -> None:
    assert torch.equal(tokens == 0, torch.arange(16).expand(6, 16) == 0)
    expected = evaluated_by_sae_lens(base, saved_sae, tokens)
    plain, found = measure_splices(
        load(base, "float32"), SITE, {"sae": Dictionary.read(saved_sae).reconstruct}, tokens, 4
    )
    assert plain == pytest.approx(expected["ce_loss_without_sae"].mean().item(), abs=1e-4)
    assert found["sae"].cross_entropy == pytest.approx(expected["ce_loss_with_sae"].mean().item(), abs=1e-4)
    # sae-lens also gives the divergence at the last position, which predicts no token of the window.
    assert found["sae"].kl == pytest.approx(expected["kl_div_with_sae"][:, :-1].mean().item(), abs=1e-4)
    assert abs(found["sae"].cross_entropy - plain) > 0.01
    assert found["sae"].kl > 0.01

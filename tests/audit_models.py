"""Checkpoints, SAEs and a text for the tests of the audit: small, and known by construction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from conftest import tiny
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn
from torch.nn.utils import prune
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from feature_survival.models import blocks

WINDOW, SITE = 32, 1
SHRUNK = 0.95  # by how much the planted SAE's reconstruction is scaled: its FVU is small, and not 0


class Bench(NamedTuple):
    """A base, an SAE of it, a text; and where to put more."""

    root: Path
    base: Path
    sae: Path
    text: Path

    def options(self, compressed: Path, out: Path, *more: str, **changes: Any) -> list[str]:
        """Arguments of the command line; keywords change options."""
        options = {"base": self.base, "compressed": compressed, "site": f"resid_post.{SITE}", "text": self.text,
                   "out": out, "window": WINDOW, "batch": 16, **changes}  # fmt: skip
        found = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        return ["audit", *found, *more]


def make(root: Path, corpus: Path, tokenizer: Tokenizer) -> Bench:
    """A base in hub layout, its planted SAE, and all splits of the corpus as one text."""
    base = root / "base"
    save(tiny("LlamaForCausalLM"), base)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>").save_pretrained(base)
    text = root / "text.jsonl"
    text.write_text("".join(path.read_text() for path in sorted(corpus.glob("*.jsonl"))))
    return Bench(root, base, planted_sae(root / "sae", 32), text)


def save(model: PreTrainedModel, folder: Path, **options: Any) -> Path:
    """Save as others do."""
    model.save_pretrained(folder, **options)
    return folder


def planted_sae(folder: Path, width: int, hook: str = f"blocks.{SITE}.hook_resid_post") -> Path:
    """A ReLU SAE whose features are the axes, once up and once down: feature i is axis i, i + width the same turned."""
    folder.mkdir()
    axes = torch.cat([torch.eye(width), -torch.eye(width)])
    weights = {"W_enc": axes.T, "b_enc": torch.zeros(2 * width), "W_dec": SHRUNK * axes, "b_dec": torch.zeros(width)}
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "sae_weights.safetensors")
    config = {"architecture": "standard", "d_in": width, "d_sae": 2 * width, "normalize_activations": "none",
              "apply_b_dec_to_input": False, "metadata": {"hook_name": hook}}  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def pruned_by_torch(amount: float) -> PreTrainedModel:
    """The base, pruned by PyTorch's own tool."""
    model = tiny("LlamaForCausalLM")
    for module in blocks(model).modules():
        if isinstance(module, nn.Linear):
            prune.l1_unstructured(module, "weight", amount)
            prune.remove(module, "weight")
    return model


def without_axis(axis: int) -> PreTrainedModel:
    """The base, none of whose parts writes along one axis of the residual stream any more."""
    model: Any = tiny("LlamaForCausalLM")
    model.model.embed_tokens.weight[:, axis] = 0
    for block in blocks(model):
        block.self_attn.o_proj.weight[axis] = 0
        block.mlp.down_proj.weight[axis] = 0
    return model

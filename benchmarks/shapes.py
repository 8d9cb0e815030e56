"""Untrained models of the miniatures' shapes, and tokens for them: what the benchmarks run on, made anew every time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from feature_survival.catalogue import Site
from feature_survival.models import compute_device

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedModel

VOCABULARY, WINDOW, WIDTH, BLOCKS, HEADS = 2048, 128, 128, 4, 4
FAMILIES = "llama", "gpt2"
SITE = Site("resid_post", 1)


def untrained(family: str, width: int = WIDTH, spread: float = 0.02) -> PreTrainedModel:
    """Four blocks, 1.3M parameters at width 128, float32; `spread` is the standard deviation of the weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    if family != "gpt2":
        return llama(width, width * 11 // 4, BLOCKS, HEADS, HEADS // 2, VOCABULARY, spread)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=width,
            n_layer=BLOCKS,
            n_head=HEADS,
            n_positions=WINDOW,
            initializer_range=spread,
            bos_token_id=0,
        )
    )
    return model.eval().requires_grad_(False).to(compute_device())


def llama(
    width: int, hidden: int, blocks: int, heads: int, key_value_heads: int, vocabulary: int, spread: float = 0.02
) -> LlamaForCausalLM:
    """float32; `hidden` is the MLP's width."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
        initializer_range=spread,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False).to(compute_device())


def random_tokens(windows: int) -> Tensor:
    """int64 [windows, 128], 0 in front; the same at every call."""
    tokens = torch.randint(1, VOCABULARY, (windows, WINDOW), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = 0
    return tokens

"""What a model's arithmetic depends on, read off the model itself on torch's meta device: no weight is made."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from feature_survival.catalogue import Model, Site
from feature_survival.config import Sae
from feature_survival.plan.devices import Work

FLOAT, DOUBLE = 4, 8  # bytes
HALF = 2  # of what is stored in half precision: bases, activations, SAEs


class Shape(NamedTuple):
    """Sizes of a model, and the costs of passes through it. Bytes are of the type that it runs in."""

    parameters: int  # tied ones once
    block: dict[str, tuple[int, int]]  # linear maps of one block, (out, in) by path
    blocks: int
    width: int  # of the residual stream
    attended: int  # width of attn_z: heads x their width
    heads: int
    vocabulary: int
    item: int  # bytes of a number
    eager: bool  # attention scores are held whole

    @classmethod
    def of(cls, model: Model) -> Shape:
        """The sizes of a catalogue entry. Every block is taken to be as its first."""
        import torch

        from feature_survival.models import adapter_for, blocks, build, prunable

        with torch.device("meta"):
            built = build(model)
        stack = blocks(built)
        maps = {name: (weight.shape[0], weight.shape[1]) for name, weight in prunable(stack[0]).items()}
        width, attended = maps[adapter_for(model.architecture).attn_projection]
        return cls(
            sum(parameter.numel() for parameter in built.parameters()),
            maps,
            len(stack),
            width,
            attended,
            built.config.num_attention_heads,
            model.vocabulary,
            FLOAT if model.dtype == "float32" else 2,
            built.config._attn_implementation == "eager",
        )

    @property
    def weights(self) -> int:
        """Bytes of the model."""
        return self.parameters * self.item

    @property
    def block_numel(self) -> int:
        """Prunable weights of a block."""
        return sum(map(prod, self.block.values()))

    @property
    def prunable(self) -> int:
        """Prunable weights of the model."""
        return self.blocks * self.block_numel

    @property
    def largest(self) -> int:
        """Weights of the largest linear map."""
        return max(map(prod, self.block.values()))

    @property
    def inner(self) -> int:
        """Width of the MLP."""
        return max(max(shape) for shape in self.block.values())

    @property
    def cached(self) -> int:
        """Bytes of a token's keys and values in all blocks; without a map of keys alone, heads are all there are."""
        keys = next((rows for name, (rows, _) in self.block.items() if name.endswith("k_proj")), self.attended)
        return self.blocks * 2 * keys * self.item

    def site_width(self, site: Site) -> int:
        """Width of the activations read at a site."""
        return self.attended if site.point == "attn_z" else self.width

    def products(self, flops: float) -> Work:
        """Matrix products in the model's own type."""
        return Work(half=flops) if self.item == 2 else Work(single=flops)

    def passed(self, tokens: float, window: int, blocks: int) -> Work:
        """Tokens through so many blocks: 2 FLOPs a weight and token; scores and mixing of all pairs of a window's
        positions (4 x window x attn_z), half of which the causal mask throws away; reads and writes of activations."""
        scores = 6 * window * self.heads * FLOAT if self.eager else 0
        moved = (12 * self.width + 6 * self.inner) * self.item + scores
        work = self.products(tokens * blocks * (2 * self.block_numel + 4 * window * self.attended))
        return work + Work(moved=tokens * blocks * moved)

    def predicted(self, tokens: float) -> Work:
        """Log-probabilities of tokens: 2 FLOPs a weight of the head; logits written, made float32, normalised."""
        logits = tokens * self.vocabulary
        return self.products(2 * logits * self.width) + Work(moved=logits * (self.item + 5 * FLOAT))

    def forward(self, tokens: float, window: int) -> Work:
        """Log-probabilities from tokens: all blocks and the head."""
        return self.passed(tokens, window, self.blocks) + self.predicted(tokens)

    def activations(self, tokens: int, window: int) -> float:
        """Peak bytes inside a block: the stream before, after and normalised, the MLP's inner states; eager scores
        twice."""
        scores = 2 * window * self.heads * FLOAT if self.eager else 0
        return tokens * ((4 * self.width + 3 * self.inner) * self.item + scores)


def encoded(width: int, features: int, tokens: float) -> Work:
    """An SAE's encoder, float32: 2 FLOPs a weight and token, and TopK's passes over the codes."""
    return Work(single=2 * width * features * tokens, moved=tokens * (6 * features + 4 * width) * FLOAT)


def transferred(width: int, features: int, tokens: float) -> Work:
    """One SAE on two models' activations: both encoded; what their few active features take is not counted."""
    return encoded(width, features, tokens) * 2


def trained(of: Sae, width: int, tokens: float) -> Work:
    """An SAE in training, Adam over the weights at every step. Sparse: the encoder's product, passes over its codes to
    find the largest; by sae-lens's dense trainer six products of all codes with a weight matrix a token (forward,
    backward, dead features) and three times the passes."""
    features, steps = of.expansion * width, tokens / of.batch_tokens
    products, passes = (1, 8) if of.trainer == "sparse" else (6, 24)
    moved = tokens * (features * passes + 8 * of.k * width) * FLOAT + steps * 2 * width * features * 12 * FLOAT
    single = products * 2 * width * features * tokens
    return Work(single=single, moved=moved, steps=steps, read=tokens * width * HALF)


def nearest(width: int, features: int) -> Work:
    """Mutual nearest neighbours of two SAEs' rows: all cosines."""
    return Work(single=2 * features * features * width, moved=features * features * 3 * FLOAT)


def matched(width: int, features: int) -> Work:
    """Two SAEs' rows, mutual nearest and one to one: twice all cosines; the assignment runs on the host (its seconds,
    measured up to 6k rows, grow with their square)."""
    return nearest(width, features) * 2 + Work(host=1e-7 * features * features)

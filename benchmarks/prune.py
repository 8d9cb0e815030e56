"""Pruning by Wanda beside its reference's sample-by-sample loop, at three sizes of a model with random weights.

The bound is two plain passes of the calibration tokens through the embedding and the decoder blocks, in the same
batches: no hooks, no logits. Each block must be passed twice, once to see its inputs and once as pruned; but the
last one only once, and its last map not at all, so that ours can stay below.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from race import Case, Rival, Seconds, say
from safetensors.torch import load_file, save_file
from shapes import WINDOW, llama
from torch import Tensor, nn

from feature_survival.compression.calibrate import compress
from feature_survival.compression.forms import Masked
from feature_survival.forward import ForwardStopped
from feature_survival.recipes import Recipe

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

SPARSITY = 0.5
ROUNDING = 1e-5  # share of decisions that may differ in the first block where any do
AFTERWARDS = 0.01  # and of all
PEER = Path(__file__).parent.parent / ".llmcompressor"
LARGEST = "300M"


class Shape(NamedTuple):
    """A Llama with random weights, and how much it is calibrated on."""

    width: int
    hidden: int  # of the MLP
    blocks: int
    heads: int
    key_value_heads: int
    vocabulary: int
    windows: int  # of 128 tokens
    batch: int


SHAPES = {
    "mini": Shape(128, 352, 4, 4, 2, 2_048, windows=256, batch=32),  # that of mini-llama3
    "100M": Shape(768, 2_048, 12, 12, 12, 32_000, windows=16, batch=8),
    "300M": Shape(1_024, 2_816, 24, 16, 16, 8_192, windows=16, batch=8),
}


def calibration(shape: Shape) -> Tensor:
    """Random tokens, int64 [windows, 128]."""
    return torch.randint(shape.vocabulary, (shape.windows, WINDOW), generator=torch.Generator().manual_seed(1))


def ours(model: LlamaForCausalLM, tokens: Tensor, batch: int) -> dict[str, Tensor]:
    """Masks by weight, True = kept."""
    forms = compress(model, Recipe("wanda", SPARSITY), tokens, batch)
    return {name: form.mask for name, form in forms.items() if isinstance(form, Masked)}


@torch.no_grad()
def reference(model: LlamaForCausalLM, tokens: Tensor) -> dict[str, Tensor]:
    """The same as the method's authors compute it.

    Block by block: every sample passes by itself while hooks average the squared norms of each linear map's inputs,
    each row's scores are sorted, the lowest go, and every sample passes again, for the next block. The model is left
    as it was.
    """
    states, arguments = _entering(model, tokens)
    masks = {}
    for number, block in enumerate(model.model.layers):
        maps = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
        norms = {name: _RunningNorms(module) for name, module in maps.items()}
        handles = [module.register_forward_hook(norms[name].add) for name, module in maps.items()]
        for sample in states:
            block(sample, **arguments)
        for handle in handles:
            handle.remove()
        dense = {name: module.weight.clone() for name, module in maps.items()}
        for name, module in maps.items():
            scores = module.weight.abs() * norms[name].squared.sqrt()
            lowest = torch.sort(scores, dim=-1, stable=True).indices[:, : int(scores.shape[1] * SPARSITY)]
            gone = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, lowest, True)
            module.weight[gone] = 0
            masks[f"{number}.{name}"] = ~gone
        states = [block(sample, **arguments) for sample in states]
        for name, module in maps.items():
            module.weight.copy_(dense[name])
    return masks


class _RunningNorms:
    """Mean over samples of the squared norm of each input feature, float32 [in]."""

    def __init__(self, module: nn.Linear) -> None:
        self.squared = torch.zeros(module.in_features, device=module.weight.device)
        self._samples = 0

    def add(self, _: nn.Module, args: tuple[Tensor, ...], __: Tensor) -> None:
        x = args[0].flatten(0, -2).T.float()
        self.squared *= self._samples / (self._samples + 1)
        self._samples += 1
        self.squared += torch.norm(x, p=2, dim=1) ** 2 / self._samples


def _entering(model: LlamaForCausalLM, tokens: Tensor) -> tuple[list[Tensor], dict[str, Any]]:
    """Hidden states [1, position, width] that enter block 0, a sample each, and the blocks' other arguments."""
    states: list[Tensor] = []
    arguments: dict[str, Any] = {}

    def catch(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        states.append(args[0])
        arguments.update(kwargs)
        raise ForwardStopped

    handle = model.model.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
    for sample in tokens.to(model.device).split(1):
        try:
            model(sample, use_cache=False)
        except ForwardStopped:
            continue
    handle.remove()
    return states, arguments


@torch.no_grad()
def two_passes(model: LlamaForCausalLM, tokens: Tensor, batch: int) -> None:
    """The bound."""
    for _ in range(2):
        for chunk in tokens.to(model.device).split(batch):
            model.model(chunk, use_cache=False)


class Pruned(Seconds):
    """Masks by weight, and the time they took."""

    masks: dict[str, Tensor]


def same(ours: dict[str, Tensor], *others: dict[str, Tensor] | Pruned) -> str:
    """The same masks, up to rounding.

    Other batches round otherwise, so that of two scores that are all but equal the other may be cut. What follows such
    a block sees other inputs: its masks may differ more widely, and only their sparsity is compared.
    """
    return "masks: " + "; ".join(
        _same(ours, theirs.masks if isinstance(theirs, Pruned) else theirs) for theirs in others
    )


def _same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> str:
    assert ours.keys() == theirs.keys()
    weights, odd = Counter[int](), Counter[int]()  # by block
    for name, mask in ours.items():
        block = int(name.split(".")[0])
        weights[block] += mask.numel()
        odd[block] += int((mask != theirs[name]).sum())
        assert torch.equal(mask.sum(1), theirs[name].sum(1)), f"{name}: other counts in a row"
    first = min((block for block in odd if odd[block]), default=None)
    if first is None:
        return "identical"
    assert odd[first] <= ROUNDING * weights[first], f"block {first}: {odd[first]} of {weights[first]} decisions differ"
    share = odd.total() / weights.total()
    assert share <= AFTERWARDS, f"{share:.1%} of decisions differ"
    return f"identical in {first} blocks, where rounding swaps {odd[first] // 2}; {share:.2%} differ in all"


def llm_compressor(folder: Path, model: LlamaForCausalLM, tokens: Tensor, batch: int) -> Callable[[], Pruned]:
    """What runs llm-compressor, as of its `oneshot` alone, in a process and an environment of its own."""
    model.save_pretrained(folder / "model")
    save_file({"tokens": tokens}, folder / "tokens.safetensors")
    script = Path(__file__).with_name("prune_llmcompressor.py")

    def run() -> Pruned:
        options = [str(folder), str(batch), str(torch.get_num_threads()), str(SPARSITY)]
        ended = subprocess.run([PEER / "bin" / "python", script, *options], capture_output=True, text=True, check=True)
        pruned = Pruned(ended.stdout.split()[-1])
        pruned.masks = load_file(folder / "masks.safetensors")
        return pruned

    return run


def case(name: str, shape: Shape, folder: Path) -> Case:
    """One size."""
    model, tokens = llama(*shape[:6]), calibration(shape)
    peers = [Rival("the reference's loop, a sample at a time", lambda: reference(model, tokens), 1.0)]
    if (PEER / ".complete").exists():
        peers.append(Rival("llm-compressor", llm_compressor(folder, model, tokens, shape.batch), 1.0))
    else:
        say("prune: without llm-compressor, which `make bench` puts into .llmcompressor")
    return Case(
        "prune, Wanda",
        f"{name}, {tokens.numel():,} tokens",
        lambda: ours(model, tokens, shape.batch),
        same,
        tuple(peers),
        Rival("two plain passes", lambda: two_passes(model, tokens, shape.batch), 1.25),
        tokens.numel(),
    )


def cases(full: bool = False) -> Iterator[Case]:
    """All sizes; the largest takes minutes."""
    for name, shape in SHAPES.items():
        if full or name != LARGEST:
            with tempfile.TemporaryDirectory() as folder:
                yield case(name, shape, Path(folder))

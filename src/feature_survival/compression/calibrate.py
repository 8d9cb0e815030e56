"""Pruning a model: the walk over decoder blocks that gathers each linear map's input norms on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from feature_survival.compression.masks import masks_from_scores
from feature_survival.compression.scores import SCORES, Score
from feature_survival.config import Group
from feature_survival.models import ForwardStopped, blocks, prunable, prunable_weights, run
from feature_survival.progress import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # positional after the hidden states, and keywords


@torch.no_grad()
def prune(
    model: PreTrainedModel,
    method: str,
    sparsity: float,
    group: Group,
    sequential: bool,
    tokens: Tensor | None = None,
    batch: int = 32,
) -> dict[str, Tensor]:
    """Masks (True = kept) for every prunable weight of `model`; its weights may be changed on the way.

    tokens: int64 [windows, position], for scores that read inputs. With `sequential`, block l is scored on
    hidden states that have passed through the already pruned blocks < l; without, on the dense model's.
    """
    score = SCORES[method]
    if not score.needs_inputs:
        return masks_from_scores(
            {name: score.of(weight, None) for name, weight in prunable_weights(model).items()}, sparsity, group
        )
    if tokens is None:
        raise ValueError(f"{method} needs calibration tokens")
    if group == "model" and sequential:
        raise ValueError("group 'model' needs every block's scores at once: sequential must be False")
    scores: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    for number, block, block_scores in _walk(model, score, tokens, batch, sequential):
        named = {f"{number}.{name}": values for name, values in block_scores.items()}
        if group == "model":
            scores |= named
            continue
        block_masks = masks_from_scores(named, sparsity, group)
        masks |= block_masks
        if sequential:
            for name, weight in prunable(block).items():
                weight.mul_(block_masks[f"{number}.{name}"])
    return masks or masks_from_scores(scores, sparsity, group)


def _walk(
    model: PreTrainedModel, score: Score, tokens: Tensor, batch: int, sequential: bool
) -> Iterator[tuple[int, nn.Module, dict[str, Tensor]]]:
    """Yield (number, block, scores by weight), block by block; the consumer may prune the block before the next.

    Only one block's inputs are held: hidden states [windows, position, width] are replaced batch by batch.
    """
    hidden, arguments = _block_inputs(model, tokens, batch)
    stack = blocks(model)
    for number in progress(range(len(stack)), "prune", len(stack), "block"):
        block = stack[number]
        with _input_norms(block) as squares:
            outputs = [_forward(block, states, arguments[number]) for states in hidden]
        norms = {name: total.sqrt() for name, total in squares.items()}
        yield number, block, {name: score.of(weight, norms[name]) for name, weight in prunable(block).items()}
        if sequential:
            hidden = [_forward(block, states, arguments[number]) for states in hidden]
        else:
            hidden = outputs


def _forward(block: nn.Module, states: Tensor, arguments: _Arguments) -> Tensor:
    output = block(states, *arguments[0], **arguments[1])
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def _input_norms(block: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Squared L2 norm [in] of every linear map's input features, summed in float32 over all tokens seen within."""
    squares: dict[str, Tensor] = {}
    handles = []
    modules = dict(block.named_modules())
    for name, weight in prunable(block).items():
        squares[name] = torch.zeros(weight.shape[1], dtype=torch.float32, device=weight.device)

        def gather(_: nn.Module, args: tuple[Tensor, ...], total: Tensor = squares[name]) -> None:
            total += args[0].flatten(0, -2).float().square().sum(0)

        handles.append(modules[name].register_forward_pre_hook(gather))
    try:
        yield squares
    finally:
        for handle in handles:
            handle.remove()


def _block_inputs(model: PreTrainedModel, tokens: Tensor, batch: int) -> tuple[list[Tensor], list[_Arguments]]:
    """Hidden states entering block 0, by batch, and the further arguments each block is called with.

    Masks and rotary embeddings depend on position alone (all windows are full), so those of a single window
    serve every batch by broadcasting.
    """
    stack = blocks(model)
    arguments: list[_Arguments] = []
    hidden: list[Tensor] = []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments.append((args[1:], kwargs))

    def read(_: nn.Module, args: tuple[Any, ...]) -> None:
        hidden.append(args[0])
        raise ForwardStopped

    handles = [block.register_forward_pre_hook(record, with_kwargs=True) for block in stack]
    run(model, tokens[:1])
    for handle in handles:
        handle.remove()
    handle = stack[0].register_forward_pre_hook(read)
    for chunk in tokens.split(batch):
        run(model, chunk)
    handle.remove()
    return hidden, arguments

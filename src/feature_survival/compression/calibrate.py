"""Compressing a model: the walk over decoder blocks that gathers what a method asks of each linear map's inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from feature_survival.compression.forms import Form, Masked
from feature_survival.compression.masks import masks_over_model
from feature_survival.compression.methods import METHODS, Inputs, Method
from feature_survival.compression.scores import SCORES
from feature_survival.forward import ForwardStopped, run
from feature_survival.models import blocks, prunable
from feature_survival.progress import progress
from feature_survival.recipes import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # positional after the hidden states, and keywords


@torch.no_grad()
def compress(
    model: PreTrainedModel, recipe: Recipe, tokens: Tensor | None = None, batch: int = 32, on_host: bool = False
) -> dict[str, Form]:
    """Every prunable weight of `model` as its stored form; the model is left as it was.

    tokens: int64 [windows, position], for methods that read inputs. With `sequential`, block l is compressed on
    hidden states that have passed through the already compressed blocks < l; without, on the dense model's. `on_host`
    keeps hidden states in the host's memory, and only a batch of them on the model's device.
    """
    method = METHODS[recipe.method]
    if method.needs_inputs and tokens is None:
        raise ValueError(f"{recipe.method} needs calibration tokens")
    if recipe.group == "model":
        if method.needs_inputs and recipe.sequential:
            raise ValueError("group 'model' needs every block's scores at once: sequential must be False")
        score = SCORES[recipe.method]
        scores = {
            f"{number}.{name}": score.of(weight.float(), inputs[name].norms if inputs else None)
            for number, block, inputs in _walk(model, method, tokens, batch, on_host, sequential=False)
            for name, weight in prunable(block).items()
        }
        return {name: Masked(mask) for name, mask in masks_over_model(scores, recipe.sparsity).items()}
    forms: dict[str, Form] = {}
    for number, block, inputs in _walk(model, method, tokens, batch, on_host, recipe.sequential):
        for name, weight in prunable(block).items():
            form = method.compress(weight.float(), inputs.get(name), recipe)
            forms[f"{number}.{name}"] = form
            if recipe.sequential and method.needs_inputs:
                weight.copy_(form.rebuild(weight))
    return forms


def _walk(
    model: PreTrainedModel, method: Method, tokens: Tensor | None, batch: int, on_host: bool, sequential: bool
) -> Iterator[tuple[int, nn.Module, dict[str, Inputs]]]:
    """Yield (number, block, inputs by weight), block by block; the consumer may change the block, whose weights are
    put back before the next.

    Without inputs where the method reads none. Only one block's inputs are held: hidden states [windows, position,
    width] are replaced batch by batch.
    """
    stack = blocks(model)
    if not method.needs_inputs:
        yield from ((number, block, {}) for number, block in enumerate(stack))
        return
    assert tokens is not None
    hidden, arguments = _block_inputs(model, tokens, batch, on_host)
    last = len(stack) - 1
    for number in progress(range(len(stack)), "compress", len(stack), "block"):
        block = stack[number]
        weights = prunable(block)
        keep = not sequential and number < last
        with _gathering(block, list(weights), method.needs_gram, stop=not keep) as sums:
            _advance(block, hidden, arguments[number], keep)
        dense = {name: weight.clone() for name, weight in weights.items()} if sequential else {}
        yield number, block, {name: of_input.result() for name, of_input in sums.items()}
        if sequential and number < last:
            _advance(block, hidden, arguments[number], keep=True)
        for name, weight in dense.items():
            weights[name].copy_(weight)


def _advance(block: nn.Module, hidden: list[Tensor], arguments: _Arguments, keep: bool) -> None:
    """Pass hidden states through a block, batch by batch; they become its outputs where `keep`."""
    device = next(block.parameters()).device
    for number, states in enumerate(hidden):
        try:
            output = block(states.to(device), *arguments[0], **arguments[1])
        except ForwardStopped:
            continue
        if keep:
            hidden[number] = (output[0] if isinstance(output, tuple) else output).to(states.device)


class _InputSums:
    """Sums over all tokens seen behind `Inputs`, of one input of linear maps."""

    def __init__(self, like: Tensor, with_gram: bool) -> None:
        columns = like.shape[-1]
        self._squares, self._magnitudes = torch.zeros(2, columns, dtype=torch.float32, device=like.device)
        self._gram = torch.zeros(columns, columns, dtype=torch.float64, device=like.device) if with_gram else None
        self._tokens = 0

    def add(self, x: Tensor) -> None:
        """Add inputs [..., in]."""
        x = x.flatten(0, -2).float()
        self._squares += x.square().sum(0)
        if self._gram is not None:
            self._magnitudes += x.abs().sum(0)
            self._gram += (x.T @ x).double()
        self._tokens += len(x)

    def result(self) -> Inputs:
        return Inputs(self._squares.sqrt(), self._magnitudes / self._tokens, self._gram)


@contextmanager
def _gathering(block: nn.Module, names: list[str], with_gram: bool, stop: bool) -> Iterator[dict[str, _InputSums]]:
    """Within, every pass through the block adds each linear map's inputs to its sums, which are yielded by name.

    Maps that read the same tensor (queries, keys and values; gate and up) share their sums. `stop` ends a pass at the
    last map: what it would give is not needed.
    """
    sums: dict[str, _InputSums] = {}
    visited: list[str] = []  # in the pass under way
    last: list[Tensor] = []  # the input of the map visited last

    def visit(name: str, x: Tensor) -> None:
        if last and x is last[0]:
            sums[name] = sums[visited[-1]]
        else:
            last[:] = [x]
            sums.setdefault(name, _InputSums(x, with_gram)).add(x)
        visited.append(name)
        if len(visited) == len(names):
            visited.clear()
            last.clear()
            if stop:
                raise ForwardStopped

    modules = dict(block.named_modules())
    handles = [
        modules[name].register_forward_pre_hook(lambda _, args, name=name: visit(name, args[0])) for name in names
    ]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def _block_inputs(
    model: PreTrainedModel, tokens: Tensor, batch: int, on_host: bool
) -> tuple[list[Tensor], list[_Arguments]]:
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
        hidden.append(args[0].cpu() if on_host else args[0])
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

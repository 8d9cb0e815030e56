"""Forward passes of a model: read or changed at a site, begun behind it, ended early, and what they predict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_survival.catalogue import Site
from feature_survival.models import adapter_for, block_at, blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ForwardStopped(Exception):
    """Raised by a hook to end a forward pass early; `run` takes it as a normal end."""


def _submodule(block: nn.Module, path: str) -> nn.Module:
    return reduce(getattr, path.split("."), block)


@contextmanager
def at_site(model: PreTrainedModel, site: Site, visit: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Within the block, every forward pass calls `visit` with the site's activations, float32 [batch, position, width].

    What `visit` returns, unless None, replaces them, in the model's own type. InputError for a block the model
    does not have.
    """
    block, adapter = block_at(model, site), adapter_for(type(model).__name__)
    batch: list[int] = []  # windows of the pass under way

    def entered(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        batch[:] = [len(args[0])]

    def exchange(found: Tensor) -> Tensor | None:
        # OPT's MLP works on [batch x position, width].
        changed = visit(found.view(batch[0], -1, found.shape[-1]).float())
        return None if changed is None else changed.to(found.dtype).view_as(found)

    handles = [block.register_forward_pre_hook(entered)]
    if site.point == "attn_z":

        def before(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            changed = exchange(args[0])
            return None if changed is None else (changed, *args[1:])

        handles.append(_submodule(block, adapter.attn_projection).register_forward_pre_hook(before))
    else:
        target = block if site.point == "resid_post" else _submodule(block, getattr(adapter, site.point))

        def after(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...] | None:
            if isinstance(output, tuple):  # attention returns (output, weights)
                changed = exchange(output[0])
                return None if changed is None else (changed, *output[1:])
            return exchange(output)

        handles.append(target.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run(model: PreTrainedModel, tokens: Tensor, **inputs: Any) -> None:
    """A forward pass for its hooks' sake; it ends where a hook raises ForwardStopped. inputs: further ones, by name."""
    try:
        model(tokens.to(model.device), **{"use_cache": False, **inputs})
    except ForwardStopped:
        pass


def read_site(model: PreTrainedModel, site: Site, tokens: Tensor, **inputs: Any) -> Tensor:
    """Activations at a site, float32 [batch, position, width]; the pass ends there (no later block, no logits).
    inputs: as of `run`."""
    read: list[Tensor] = []

    def visit(activations: Tensor) -> None:
        read.append(activations)
        raise ForwardStopped

    with at_site(model, site, visit):
        run(model, tokens, **inputs)
    return read[0]


def start_of(site: Site) -> Site | None:
    """The residual stream from which a forward pass that changes only `site` can start; None: from the tokens."""
    if site.point == "resid_post":
        return site
    return Site("resid_post", site.block - 1) if site.block else None


@contextmanager
def starting_at(model: PreTrainedModel, site: Site | None, hidden: Tensor) -> Iterator[None]:
    """Within the block, forward passes skip every block up to and including `site.block`.

    The last of them gives `hidden` [batch, position, width] instead of its output; hooks of `at_site` still see it.
    Nothing is skipped where `site` is None.
    """
    hidden = hidden.to(model.dtype)
    skipped = [] if site is None else list(blocks(model))[: site.block + 1]
    for block in skipped:
        block.forward = lambda *_, **__: hidden
    try:
        yield
    finally:
        for block in skipped:
            del block.forward  # the class's own is seen again


@contextmanager
def head_only_at(model: PreTrainedModel, keep: Tensor) -> Iterator[None]:
    """Within the block, logits are [n, vocabulary]: those of the n positions where `keep`, bool [batch, position].

    The last block's MLP runs there alone; elsewhere it gives zeros, which nothing behind it looks at.
    """

    def select(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (args[0][keep],)

    def spread(_: nn.Module, __: object, output: Tensor) -> Tensor:
        whole = output.new_zeros(*keep.shape, output.shape[-1])
        whole[keep] = output
        return whole

    handles = [model.get_output_embeddings().register_forward_pre_hook(select)]
    mlp = getattr(blocks(model)[-1], "mlp", None)  # OPT has none
    if mlp is not None:
        handles.append(mlp.register_forward_pre_hook(select))
        handles.append(mlp.register_forward_hook(spread, prepend=True))  # before those of `at_site`
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def cross_entropy(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Next-token cross-entropy in nats, float32 [batch, position - 1]."""
    tokens = tokens.to(model.device)
    logits = model(tokens, use_cache=False).logits.float()
    # The last position, which has no next token, is ignored rather than cut off: that would copy all logits.
    targets = F.pad(tokens[:, 1:], (0, 1), value=-1)
    found = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none")
    return found.view(len(tokens), -1)[:, :-1]


def log_probabilities(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Next-token log-probabilities, float32 [batch, position, vocabulary]; [n, vocabulary] within `head_only_at`."""
    return model(tokens.to(model.device), use_cache=False).logits.float().log_softmax(-1)

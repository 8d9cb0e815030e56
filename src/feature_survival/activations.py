"""A model's activations at a site, in half precision: sharded on writing, memory-mapped on reading."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from feature_survival.artifacts import read_tensors
from feature_survival.catalogue import Site
from feature_survival.forward import read_site
from feature_survival.progress import progress
from feature_survival.schema import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Normalization(NamedTuple):
    """x -> (x - mean) / scale. Taken from the dense model and used for every condition of it."""

    mean: Tensor  # float32 [width]
    scale: float  # mean L2 norm of x - mean, over sqrt(width)


def write_shards(
    model: PreTrainedModel, site: Site, tokens: Tensor, batch: int, shard_windows: int, folder: Path, split: str
) -> None:
    """Write a split as `<split>-00000.safetensors`, ..., `shard_windows` each; `batch` windows a forward pass.

    tokens: int64 [windows, position]. Each shard holds `activations` [rows, width], float16, or bfloat16 where that is
    the model's own type and so loses nothing; rows are in the order of the tokens, without position 0 of every window
    (the attention sink, whose norm dwarfs the rest).
    InputError where activations are not finite in half precision.
    """
    shards, half = tokens.split(shard_windows), torch.bfloat16 if model.dtype == torch.bfloat16 else torch.float16
    for number, shard in enumerate(progress(shards, f"cache {split}", len(shards), "shard")):
        read = torch.cat([read_site(model, site, chunk)[:, 1:].to(half).flatten(0, 1) for chunk in shard.split(batch)])
        if not torch.isfinite(read).all():
            raise InputError(
                f"activations at {site} are not finite in half precision ({split} {number}); "
                "bfloat16 holds larger ones: dtype of the model"
            )
        save_file({"activations": read.cpu()}, folder / f"{split}-{number:05d}.safetensors")


class Shards:
    """A cached split as one [rows, width] matrix; pages are read from disk when rows are asked for."""

    def __init__(self, folder: Path, split: str) -> None:
        files = sorted(folder.glob(f"{split}-*.safetensors"))
        if not files:
            raise InputError(f"{folder}: no {split} shards; run the cache stage")
        try:
            # safetensors maps the file; nothing is read until rows are gathered.
            self._parts = [safe_open(file, framework="pt").get_tensor("activations") for file in files]
        except SafetensorError as error:
            raise InputError(
                f"{folder}: a {split} shard is truncated or foreign ({error}); run the cache stage"
            ) from None
        self._starts = torch.tensor([0] + [len(part) for part in self._parts]).cumsum(0)
        self.width = self._parts[0].shape[1]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def gather(self, rows: Tensor) -> Tensor:
        """float32 [len(rows), width] for row numbers int64 [n], in their order."""
        out = torch.empty(len(rows), self.width)
        shard = torch.searchsorted(self._starts, rows, right=True) - 1
        for number in shard.unique().tolist():
            here = (shard == number).nonzero(as_tuple=True)[0]
            out[here] = self._parts[number][rows[here] - self._starts[number]].float()
        return out

    def batches(self, size: int) -> Iterator[Tensor]:
        """All rows in order, float32 [<= size, width] at a time."""
        for part in self._parts:
            for chunk in part.split(size):
                yield chunk.float()


def measure_normalization(shards: Shards, batch: int = 65536) -> Normalization:
    """Mean and scale of a split, in two streamed passes with float64 sums."""
    mean = sum(x.double().sum(0) for x in shards.batches(batch)) / len(shards)
    assert isinstance(mean, Tensor)
    norm = sum((x.double() - mean).norm(dim=1).sum() for x in shards.batches(batch)) / len(shards)
    return Normalization(mean.float(), float(norm) / math.sqrt(shards.width))


def write_normalization(normalization: Normalization, folder: Path) -> None:
    """Write `normalization.safetensors` beside the shards."""
    scale = torch.tensor([normalization.scale])
    save_file({"mean": normalization.mean, "scale": scale}, folder / "normalization.safetensors")


def read_normalization(folder: Path) -> Normalization:
    """What `write_normalization` wrote."""
    tensors = read_tensors(folder / "normalization.safetensors", Normalization._fields)
    return Normalization(tensors["mean"], tensors["scale"].item())

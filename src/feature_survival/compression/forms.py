"""Forms in which a compressed weight is stored: only what differs from the base model, and how to rebuild it.

A form knows its tensors for a safetensors file, the weight it stands for, and the bits it costs. Weights are
[out, in], as `models.prunable` gives them.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

FULL_BITS = 16  # of a weight that is kept as it is, whatever type its checkpoint has


class Form(Protocol):
    """One weight of a compressed model."""

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by names that tell the forms apart."""

    def rebuild(self, base: Tensor) -> Tensor:
        """The compressed weight, of the shape and type of the base model's; ValueError where it cannot fit it."""

    def bits(self) -> int:
        """Bits that this weight takes: what a kept value, code, scale or mask bit costs, summed."""


class Masked(NamedTuple):
    """Weights removed, the others as they are in the base model."""

    mask: Tensor  # bool [out, in], True = kept

    def tensors(self) -> dict[str, Tensor]:
        """One bit a weight."""
        return {"mask": pack(self.mask)}

    def rebuild(self, base: Tensor) -> Tensor:
        """The base model's weight with zeros."""
        _same_shape("mask", self.mask.shape, base.shape)
        return base * self.mask.to(base.device)

    def bits(self) -> int:
        """The kept values in full, and the mask."""
        return int(self.mask.sum()) * FULL_BITS + self.mask.numel()


class Updated(NamedTuple):
    """Weights removed and the others changed (SparseGPT)."""

    mask: Tensor  # bool [out, in], True = kept
    values: Tensor  # float16 [kept]: the kept weights, row by row

    def tensors(self) -> dict[str, Tensor]:
        """One bit a weight, and the kept weights."""
        return {"mask": pack(self.mask), "values": self.values}

    def rebuild(self, base: Tensor) -> Tensor:
        """Zeros and the stored values."""
        _same_shape("mask", self.mask.shape, base.shape)
        if len(self.values) != int(self.mask.sum()):
            raise ValueError(f"{len(self.values)} values for a mask that keeps {int(self.mask.sum())}")
        weight = torch.zeros_like(base)
        weight[self.mask.to(base.device)] = self.values.to(base)
        return weight

    def bits(self) -> int:
        """The kept values in full, and the mask."""
        return int(self.mask.sum()) * FULL_BITS + self.mask.numel()


class Quantized(NamedTuple):
    """Integers with a scale a group of consecutive inputs, and, where given, a scale an input (AWQ)."""

    codes: Tensor  # int8 [out, in]
    scales: Tensor  # float16 [out, in / group]
    width: int  # bits of a code
    channels: Tensor | None = None  # float16 [in]: inputs were multiplied by it before rounding

    def tensors(self) -> dict[str, Tensor]:
        """Codes of up to 4 bits are stored two a byte."""
        codes = pack_nibbles(self.codes) if self.width <= 4 else self.codes
        stored = {"codes": codes, "scales": self.scales, "width": torch.tensor(self.width, dtype=torch.int8)}
        return stored if self.channels is None else {**stored, "channels": self.channels}

    def rebuild(self, base: Tensor) -> Tensor:
        """scale x code (/ channel)."""
        _same_shape("codes", self.codes.shape, base.shape)
        if self.scales.shape[:-1] != base.shape[:1] or not self.scales.numel() or base.shape[1] % self.scales.shape[1]:
            raise ValueError(f"scales {list(self.scales.shape)} do not divide a weight {list(base.shape)}")
        if self.channels is not None:
            _same_shape("channels", self.channels.shape, base.shape[1:])
        group = base.shape[1] // self.scales.shape[1]
        weight = self.codes.float() * self.scales.float().repeat_interleave(group, dim=1)
        return (weight if self.channels is None else weight / self.channels.float()).to(base)

    def bits(self) -> int:
        """Codes, and every scale in half precision."""
        scales = self.scales.numel() + (0 if self.channels is None else self.channels.numel())
        return self.codes.numel() * self.width + scales * 16


class LowRank(NamedTuple):
    """A product of two thin matrices."""

    left: Tensor  # float16 [out, rank]
    right: Tensor  # float16 [rank, in]

    def tensors(self) -> dict[str, Tensor]:
        """Both factors."""
        return {"left": self.left, "right": self.right}

    def rebuild(self, base: Tensor) -> Tensor:
        """left @ right."""
        _same_shape("product of the factors", (*self.left.shape[:-1], *self.right.shape[1:]), base.shape)
        if self.left.shape[-1] != len(self.right):
            raise ValueError(f"factors {list(self.left.shape)} and {list(self.right.shape)} have no product")
        return (self.left.float() @ self.right.float()).to(base)

    def bits(self) -> int:
        """Both factors in half precision."""
        return (self.left.numel() + self.right.numel()) * FULL_BITS


def read_form(tensors: dict[str, Tensor], columns: int) -> Form:
    """The form of stored tensors, for a weight of so many columns; ValueError for names that no form has."""
    names = set(tensors)
    if names == {"mask"}:
        return Masked(unpack(tensors["mask"], columns))
    if names == {"mask", "values"}:
        return Updated(unpack(tensors["mask"], columns), tensors["values"])
    if names - {"channels"} == {"codes", "scales", "width"}:
        width = int(tensors["width"])
        codes = unpack_nibbles(tensors["codes"], columns) if width <= 4 else tensors["codes"]
        return Quantized(codes, tensors["scales"], width, tensors.get("channels"))
    if names == {"left", "right"}:
        return LowRank(tensors["left"], tensors["right"])
    raise ValueError(f"no form of a weight has the tensors {', '.join(sorted(names))}")


def _same_shape(what: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if tuple(found) != tuple(wanted):
        raise ValueError(f"{what} is {list(found)}, the weight {list(wanted)}")


def pack(mask: Tensor) -> Tensor:
    """Bool [out, in] -> uint8 [out, ceil(in / 8)], most significant bit first, padded with zeros."""
    return torch.from_numpy(np.packbits(np.ascontiguousarray(mask.cpu().numpy()), axis=-1))


def unpack(packed: Tensor, width: int) -> Tensor:
    """uint8 [out, ceil(width / 8)] -> bool [out, width]; ValueError where the width cannot have been packed so."""
    if packed.dtype != torch.uint8 or packed.shape[-1] != (width + 7) // 8:
        raise ValueError(f"packed mask {packed.dtype} {list(packed.shape)} does not hold rows of {width} bits")
    return torch.from_numpy(np.unpackbits(packed.numpy(), axis=-1, count=width).astype(bool))


def pack_nibbles(codes: Tensor) -> Tensor:
    """int8 [out, in], each in [-8, 7] -> uint8 [out, ceil(in / 2)], the first of a pair in the high half."""
    padded = torch.nn.functional.pad(codes.cpu(), (0, codes.shape[1] % 2))
    high, low = ((padded[:, start::2] & 0xF).to(torch.uint8) for start in (0, 1))
    return high << 4 | low


def unpack_nibbles(packed: Tensor, width: int) -> Tensor:
    """What `pack_nibbles` packed: int8 [out, width]; ValueError where the width cannot have been packed so."""
    if packed.dtype != torch.uint8 or packed.shape[-1] != (width + 1) // 2:
        raise ValueError(f"packed codes {packed.dtype} {list(packed.shape)} do not hold rows of {width} codes")
    halves = torch.stack([packed >> 4, packed & 0xF], dim=-1).flatten(1)[:, :width].to(torch.int8)
    return torch.where(halves > 7, halves - 16, halves)

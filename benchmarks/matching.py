"""Mutual nearest neighbours beside the bare matrix product, at Gemma-2-2B's width: 65,536 features with `--full`.

The peer is what one would write plainly: both dictionaries normalised whole, one product, two `argmax`. The bound is
that product in tiles that are thrown away. Memory is what the process grows by beyond both dictionaries, at its most,
in a process of its own; it does not depend on how many features there are but for 24 bytes each.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from race import Case, Rival, extra_memory
from torch import Tensor

from feature_survival.matching import NO_MATCH, mutual_cosine

WIDTH = 2304
ROWS, WHOLE = 8_192, 65_536
TILE = 2048, 8192


def dictionaries(rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Two of random directions, the second half the first with noise, in another order."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(rows, width, generator=generator) for _ in range(2))
    b[: rows // 2] += 2 * a[rows // 2 :]
    return a, b


def plain(a: Tensor, b: Tensor) -> Tensor:
    """All similarities at once."""
    cosine = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    best, nearest = cosine.max(dim=1)
    return torch.where(cosine.argmax(dim=0)[nearest] == torch.arange(len(a)), best, NO_MATCH)


def product(a: Tensor, b: Tensor) -> None:
    """The bare product, tile by tile."""
    for rows in a.split(TILE[0]):
        for others in b.split(TILE[1]):
            rows @ others.T


def memory(rows: int, width: int) -> int:
    """Bytes of `mutual_cosine` beyond its inputs, in a process of its own."""
    ended = subprocess.run(
        [sys.executable, __file__, str(rows), str(width)],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "1048576"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(ended.stdout)


def case(rows: int, width: int) -> Case:
    """Dictionaries of as many features; without the peer where it could not hold its similarities."""
    a, b = dictionaries(rows, width)

    def same(ours: Tensor, *others: Tensor) -> str:
        found = f"beyond the inputs {memory(rows, width) / 2**20:.0f} MiB (target < 1024)"
        if not others:
            return found
        assert ((ours == NO_MATCH) == (others[0] == NO_MATCH)).all(), "other pairs"
        return f"the same pairs, cosines {(ours - others[0]).abs().max():.0e}; {found}"

    peers = (Rival("all similarities at once", lambda: plain(a, b)),) if rows <= ROWS else ()
    bound = Rival("bare matrix product", lambda: product(a, b), 1.5)
    name = f"{rows:,} x {rows:,} features of width {width}"
    return Case("matching", name, lambda: mutual_cosine(a, b), same, peers, bound, rows, "feature")


def cases(full: bool = False) -> Iterator[Case]:
    """A slice; the whole takes minutes a run."""
    yield case(ROWS, WIDTH)
    if full:
        yield case(WHOLE, WIDTH)


if __name__ == "__main__":
    first, second = dictionaries(*map(int, sys.argv[1:]))
    mutual_cosine(first[:1], second[:1])  # libraries' own first use
    print(extra_memory(lambda: mutual_cosine(first, second)))

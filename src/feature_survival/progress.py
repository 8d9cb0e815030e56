"""Progress bars: rate and time left on a terminal, silence elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Iterable[T], what: str, total: int | None = None, unit: str = "it") -> Iterable[T]:
    """`items`, with a bar on standard error where that is a terminal."""
    return tqdm(items, desc=what, total=total, unit=unit, disable=None, dynamic_ncols=True, leave=False)

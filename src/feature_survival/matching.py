"""Which feature of one dictionary is which of another: by mutual nearest neighbours, or one to one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

NO_MATCH = -1.0  # below every threshold


def mutual_cosine(a: Tensor, b: Tensor, chunk: int = 2048) -> Tensor:
    """Cosine of each row of `a` to its mutual nearest neighbour in `b`; NO_MATCH where it has none.

    a [n, d], b [m, d]: decoder rows, of any norm. Row i and row j are mutual nearest neighbours where
    j = argmax C_i. and i = argmax C_.j (first index on ties). Returns float32 [n]; survival at tau is
    `mutual_cosine(a, b) >= tau`. Beside `a` and `b`, `chunk` unit rows of `a`, 4 times as many of `b` and their
    similarities are held, whatever n and m.
    """
    best_of_a = torch.full((len(a),), -torch.inf, device=a.device)
    nearest_to_a = torch.zeros(len(a), dtype=torch.long, device=a.device)
    nearest_to_b = torch.zeros(len(b), dtype=torch.long, device=a.device)
    for left, others in _unit_rows(b, 4 * chunk, a.device):
        best_of_b = torch.full((len(others),), -torch.inf, device=a.device)
        for top, rows in _unit_rows(a, chunk, a.device):
            cosine = rows @ others.T
            # The first of equals stays: a later tile has to be better.
            _keep_better(best_of_a[top : top + chunk], nearest_to_a[top : top + chunk], *cosine.max(dim=1), left)
            _keep_better(best_of_b, nearest_to_b[left : left + len(others)], *cosine.max(dim=0), top)
    mutual = nearest_to_b[nearest_to_a] == torch.arange(len(a), device=a.device)
    return torch.where(mutual, best_of_a, NO_MATCH)


def _unit_rows(x: Tensor, chunk: int, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """Chunks of rows, float32 and of norm 1, on the device, each behind the number of its first row."""
    for start in range(0, len(x), chunk):
        yield start, F.normalize(x[start : start + chunk].to(device, torch.float32), dim=1)


def _keep_better(best: Tensor, nearest: Tensor, value: Tensor, index: Tensor, offset: int) -> None:
    """Write what is better than the best so far over it."""
    better = value > best
    best[better], nearest[better] = value[better], index[better] + offset


def assigned(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The one-to-one assignment of rows of `a` to rows of `b` with the highest sum of cosines (Hungarian method).

    a [n, d], b [m, d]: rows of any norm. Returns cosines float32 [n] and partners int64 [n]; NaN and -1 for rows of
    `a` left over where n > m. The n x m similarities are held whole.
    """
    cosine = (F.normalize(a.float(), dim=1) @ F.normalize(b.float().to(a.device), dim=1).T).cpu()
    rows, columns = (torch.from_numpy(part) for part in linear_sum_assignment(cosine.numpy(), maximize=True))
    found = torch.full((len(a),), torch.nan)
    partner = torch.full((len(a),), -1, dtype=torch.long)
    found[rows], partner[rows] = cosine[rows, columns], columns
    return found.to(a.device), partner.to(a.device)


def random_dictionary(rows: int, width: int, seed: int) -> Tensor:
    """Unit vectors uniform on the sphere, float32 [rows, width]: the least that can match by chance."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=generator), dim=1)

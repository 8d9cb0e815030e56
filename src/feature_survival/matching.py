"""Which feature of one dictionary is which of another: by mutual nearest neighbours, or one to one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

NO_MATCH = -1.0  # below every threshold


def mutual_cosine(a: Tensor, b: Tensor, chunk: int = 4096) -> Tensor:
    """Cosine of each row of `a` to its mutual nearest neighbour in `b`; NO_MATCH where it has none.

    a [n, d], b [m, d]: decoder rows, of any norm. Row i and row j are mutual nearest neighbours where
    j = argmax C_i. and i = argmax C_.j (first index on ties). Returns float32 [n]; survival at tau is
    `mutual_cosine(a, b) >= tau`. The n x m similarities are never held whole.
    """
    a, b = F.normalize(a.float(), dim=1), F.normalize(b.float().to(a.device), dim=1)
    best_of_a = a.new_empty(len(a))
    nearest_to_a = torch.empty(len(a), dtype=torch.long, device=a.device)
    best_of_b = b.new_full((len(b),), -torch.inf)
    nearest_to_b = torch.zeros(len(b), dtype=torch.long, device=b.device)
    for start in range(0, len(a), chunk):
        cosine = a[start : start + chunk] @ b.T
        best_of_a[start : start + chunk], nearest_to_a[start : start + chunk] = cosine.max(dim=1)
        best, row = cosine.max(dim=0)
        nearest_to_b = torch.where(best > best_of_b, row + start, nearest_to_b)
        best_of_b = torch.maximum(best, best_of_b)
    mutual = nearest_to_b[nearest_to_a] == torch.arange(len(a), device=a.device)
    return torch.where(mutual, best_of_a, NO_MATCH)


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

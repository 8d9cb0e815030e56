"""Weights as products of two thin matrices, at the parameter count of a sparsity. Pure functions of tensors."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from feature_survival.compression.forms import LowRank

DAMPING = 1e-10  # of the mean eigenvalue of a Gram matrix: directions that no input took count as this


def rank_at(rows: int, columns: int, sparsity: float) -> int:
    """The largest rank whose two factors hold at most (1 - sparsity) * rows * columns parameters; may be 0.

    The sparsity is read as the decimal that was written, as `masks.pruned_count` does.
    """
    return int((1 - Fraction(str(sparsity))) * rows * columns / (rows + columns))


def truncated_svd(weight: Tensor, rank: int) -> LowRank:
    """The nearest matrix of that rank in Frobenius norm (Eckart & Young 1936): U sqrt(S) and sqrt(S) V^T.

    weight: [out, in]. The SVD is taken in float64; each column of the left factor has its largest entry positive.
    ValueError for a rank that the weight cannot have.
    """
    return _projected(weight, weight.double(), rank)


def activation_weighted_svd(weight: Tensor, gram: Tensor, rank: int) -> LowRank:
    """The matrix of that rank whose outputs are nearest: minimises ||(W - W') X^T||_F (SVD-LLM: Wang et al. 2025).

    weight: [out, in]; gram: float64 [in, in], G = X^T X of the calibration inputs. With G = R R^T, the paper
    truncates the SVD U S V^T of W R and multiplies by R^-1. As S V^T = U^T W R, that is U U^T W: R is never inverted,
    and G may be singular. Signs and errors as `truncated_svd`.
    """
    values, vectors = torch.linalg.eigh(gram.double())
    root = vectors * values.clamp(min=DAMPING * values.mean().item()).sqrt()
    return _projected(weight, weight.double() @ root, rank)


def _projected(weight: Tensor, outputs: Tensor, rank: int) -> LowRank:
    """U U^T W for the leading left singular vectors U of `outputs`, both factors with equal norms by component."""
    if not 1 <= rank <= min(weight.shape):
        raise ValueError(f"a weight {list(weight.shape)} has no rank {rank}: 1 to {min(weight.shape)}")
    left = torch.linalg.svd(outputs, full_matrices=False).U[:, :rank]
    left = left * left.gather(0, left.abs().argmax(0, keepdim=True)).sign()
    right = left.T @ weight.double()
    norms = right.norm(dim=1).sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    return LowRank((left * norms).half().contiguous(), (right / norms.unsqueeze(1)).half().contiguous())

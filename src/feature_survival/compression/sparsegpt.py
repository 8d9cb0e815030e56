"""SparseGPT: prune column by column, and let the later columns make up for each weight's loss."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from feature_survival.compression.forms import Updated
from feature_survival.compression.masks import masks_in_groups, pruned_count
from feature_survival.recipes import pattern


@torch.no_grad()
def sparsegpt(
    weight: Tensor, gram: Tensor, sparsity: float, group: str, block: int = 128, damping: float = 0.01
) -> Updated:
    """The mask and the updated weights of Frantar & Alistarh (ICML 2023), Algorithm 1.

    weight: float32 [out, in]. gram: float64 [in, in], X^T X summed over calibration tokens; a factor in it cancels.
    group: what a weight is compared within when the sweep reaches a block of columns: its `row` of the block, the
    whole block (`matrix`), or, for a pattern `N:M`, its M consecutive inputs when the sweep reaches the first of them.
    damping: share of the mean diagonal of `gram` that is added to its diagonal.

    Each row (or the matrix) loses exactly `pruned_count` weights. An input that is never active has its weights set
    to 0 before anything is selected. ValueError where M divides not both a row and the block, or where `gram` is not
    of the weight's inputs; LinAlgError where the damped gram is not positive definite. Computed in float64.
    """
    rows, columns = weight.shape
    if gram.shape != (columns, columns):
        raise ValueError(f"gram is {list(gram.shape)}, the weight {list(weight.shape)}")
    step = block  # columns whose mask is selected at once
    if ":" in group:
        step = pattern(group)[1]
        if columns % step or block % step:
            raise ValueError(f"pattern {group} does not divide both rows of {columns} and blocks of {block}")
    updated = weight.to(torch.float64, copy=True)
    gram = gram.to(updated)
    updated[:, gram.diagonal() == 0] = 0
    factor = _inverse_factor(gram, damping)
    kept = torch.ones_like(weight, dtype=torch.bool)
    for start in range(0, columns, block):
        end = min(start + block, columns)
        errors = updated.new_zeros(rows, end - start)
        for column in range(start, end):
            if column % step == 0:
                span = slice(column, min(column + step, columns))
                saliency = (updated[:, span] / factor.diagonal()[span]).square()
                share = _share(span, rows if group == "matrix" else 1, sparsity)
                kept[:, span] = masks_in_groups(saliency, share, group)
            error = updated[:, column] / factor[column, column] * ~kept[:, column]
            updated[:, column:end] -= error[:, None] * factor[column, column:end]
            errors[:, column - start] = error
        updated[:, end:] -= errors @ factor[start:end, end:]
    return Updated(kept, updated[kept].to(torch.float16))


def _inverse_factor(gram: Tensor, damping: float) -> Tensor:
    """Upper triangular U with U^T U = H^-1, H the damped gram.

    Row j of U is the first row of the inverse of H over columns j and later, divided by the root of its first entry:
    all that the exact update needs once the columns before j are fixed. H = R R^T with R upper gives U = R^-1, so H
    itself is never inverted.
    """
    diagonal = gram.diagonal()
    # A dead input is alone in H whatever its entry is; the damping is a share of the inputs' own mean, so that a
    # factor in the gram cancels.
    hessian = gram + torch.diag((diagonal == 0).to(gram) + damping * diagonal.mean())
    root = torch.linalg.cholesky(hessian.flip(0, 1)).flip(0, 1)
    return torch.linalg.solve_triangular(root, torch.eye(len(gram)).to(gram), upper=True)


def _share(span: slice, rows: int, sparsity: float) -> Fraction:
    """The share of `rows` x `span` to prune: the shares of all spans make up exactly `pruned_count` of the whole."""
    count = pruned_count(rows * span.stop, sparsity) - pruned_count(rows * span.start, sparsity)
    return Fraction(count, rows * (span.stop - span.start))

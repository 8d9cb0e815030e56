"""Compression methods behind one interface: from a weight, and what calibration says of its inputs, to a stored form.

A new score is a line in `scores.SCORES`; any other method is one function, a line in `METHODS` here, and a line in
`recipes.METHOD_KEYS` that says which settings it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from feature_survival.compression.forms import Form, LowRank, Masked
from feature_survival.compression.lowrank import activation_weighted_svd, rank_at, truncated_svd
from feature_survival.compression.masks import masks_in_groups
from feature_survival.compression.quantize import activation_aware, round_to_nearest
from feature_survival.compression.scores import SCORES, Score
from feature_survival.compression.sparsegpt import sparsegpt
from feature_survival.recipes import Recipe, pattern
from feature_survival.schema import InputError

SPARSEGPT_BLOCK = 128  # columns whose mask is chosen together, as in the paper


class Inputs(NamedTuple):
    """What a calibration run says of a linear map's inputs X [tokens, in]."""

    norms: Tensor  # float32 [in]: L2 norm of each input feature over all tokens
    magnitudes: Tensor  # float32 [in]: mean |X_j|
    gram: Tensor | None  # float64 [in, in]: X^T X; None where the method does not read it

    def second_moments(self) -> Tensor:
        """`gram`, where it was gathered."""
        assert self.gram is not None
        return self.gram


class Method(NamedTuple):
    """How a weight is compressed."""

    compress: Callable[[Tensor, Inputs | None, Recipe], Form]
    needs_inputs: bool
    needs_gram: bool = False


def _scored(score: Score) -> Method:
    def compress(weight: Tensor, inputs: Inputs | None, recipe: Recipe) -> Form:
        return Masked(masks_in_groups(score.of(weight, inputs and inputs.norms), recipe.sparsity, recipe.group))

    return Method(compress, score.needs_inputs)


def _sparsegpt(weight: Tensor, inputs: Inputs | None, recipe: Recipe) -> Form:
    assert inputs is not None
    of = pattern(recipe.group)[1] if ":" in recipe.group else 1
    block = max(of, SPARSEGPT_BLOCK // of * of)  # whole patterns
    return sparsegpt(weight, inputs.second_moments(), recipe.sparsity, recipe.group, block)


def _rtn(weight: Tensor, inputs: Inputs | None, recipe: Recipe) -> Form:
    return round_to_nearest(weight, recipe.bits, recipe.quantization_group)


def _awq(weight: Tensor, inputs: Inputs | None, recipe: Recipe) -> Form:
    assert inputs is not None
    moments = inputs.second_moments()
    return activation_aware(weight, moments, inputs.magnitudes, recipe.bits, recipe.quantization_group)


def _svd(weight: Tensor, inputs: Inputs | None, recipe: Recipe) -> LowRank:
    return truncated_svd(weight, rank_of(recipe, weight.shape))


def _activation_svd(weight: Tensor, inputs: Inputs | None, recipe: Recipe) -> LowRank:
    assert inputs is not None
    return activation_weighted_svd(weight, inputs.second_moments(), rank_of(recipe, weight.shape))


METHODS: dict[str, Method] = {
    **{name: _scored(score) for name, score in SCORES.items()},
    "sparsegpt": Method(_sparsegpt, needs_inputs=True, needs_gram=True),
    "rtn": Method(_rtn, needs_inputs=False),
    "awq": Method(_awq, needs_inputs=True, needs_gram=True),
    "svd": Method(_svd, needs_inputs=False),
    "activation-svd": Method(_activation_svd, needs_inputs=True, needs_gram=True),
}


def rank_of(recipe: Recipe, shape: tuple[int, ...]) -> int:
    """The rank of a low-rank recipe for a matrix [out, in]: the one asked for, or that of equal parameter count."""
    return recipe.rank or rank_at(shape[0], shape[1], recipe.sparsity)


def check_fits(recipe: Recipe, weights: Mapping[str, Tensor], where: str) -> None:
    """InputError, before any computing, where a recipe cannot be had for one of the matrices [out, in]; of which
    nothing but the shapes is looked at.

    Names the pair and the nearest value that fits it.
    """
    for name, weight in weights.items():
        rows, columns = weight.shape
        problem = _misfit(recipe, rows, columns)
        if problem:
            raise InputError(f"{where}: {problem} ({name}, {rows} x {columns})")


def _misfit(recipe: Recipe, rows: int, columns: int) -> str | None:
    if recipe.method in ("rtn", "awq") and columns % recipe.quantization_group:
        nearest = _nearest_divisor(columns, recipe.quantization_group)
        return f"quantization_group {recipe.quantization_group} does not divide a row of {columns}; nearest: {nearest}"
    if recipe.method in ("svd", "activation-svd"):
        rank, most = rank_of(recipe, (rows, columns)), min(rows, columns)
        if rank > most:
            return f"rank {rank} is above the matrix's; nearest: {most}"
        if rank < 1:
            sparsity = 1 - (rows + columns) / (rows * columns)
            return f"sparsity {recipe.sparsity:g} leaves no rank; nearest: {int(sparsity * 1000) / 1000:g}"
    if ":" in recipe.group:
        kept, of = pattern(recipe.group)
        if columns % of:
            nearest = _nearest_divisor(columns, of, least=2)
            kept = min(kept, nearest - 1)
            return f"pattern {recipe.group} does not divide a row of {columns}; nearest: {kept}:{nearest}"
    return None


def _nearest_divisor(n: int, wanted: int, least: int = 1) -> int:
    return min((d for d in range(least, n + 1) if n % d == 0), key=lambda d: (abs(d - wanted), d))

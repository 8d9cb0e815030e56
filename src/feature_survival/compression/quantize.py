"""Weights as small integers: rounding to nearest, and AWQ's scaling of inputs before it. Pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from feature_survival.compression.forms import Quantized

ALPHAS = tuple(step / 20 for step in range(20))  # AWQ's grid; 0 is plain rounding
FLOOR = 1e-6  # of the largest input: what an input that is never active counts as
SMALLEST, LARGEST = 2.0**-24, 65504.0  # float16's positive finite range


def round_to_nearest(weight: Tensor, bits: int, group: int) -> Quantized:
    """Symmetric rounding to nearest, one scale for `group` consecutive inputs of a row, no zero point.

    weight: float32 [out, in]. scale = max|w| / (2^(bits - 1) - 1), rounded to float16 before it divides, so that
    codes are nearest to what will be rebuilt from them. ValueError for bits outside 2..8, or where groups do not
    divide the inputs.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"codes have 2 to 8 bits, not {bits}")
    rows, columns = weight.shape
    if group < 1 or columns % group:
        raise ValueError(f"groups of {group} do not divide {columns} inputs")
    top = 2 ** (bits - 1) - 1
    grouped = weight.float().contiguous().view(rows, columns // group, group)
    scales = (grouped.abs().amax(2) / top).clamp(SMALLEST, LARGEST).half()  # never 0, also where all weights are
    codes = (grouped / scales.float().unsqueeze(2)).round().clamp(-top, top)
    return Quantized(codes.to(torch.int8).view(rows, columns), scales, bits)


def activation_aware(weight: Tensor, gram: Tensor, magnitudes: Tensor, bits: int, group: int) -> Quantized:
    """Rounding of weights whose inputs are scaled by how active they are (AWQ: Lin et al., MLSys 2024, eq. 4-5).

    weight: float32 [out, in]; gram: float64 [in, in], X^T X of the calibration inputs; magnitudes: float32 [in],
    their mean absolute values. Of `ALPHAS`, the one with the smallest `output_error` of what is stored is kept, the
    smallest of equals: never worse than `round_to_nearest` on these inputs. The paper's clipping of weights is left
    out. ValueError as `round_to_nearest`.
    """
    candidates = (_scaled(weight, channel_scales(magnitudes, alpha), bits, group) for alpha in ALPHAS)
    return min(candidates, key=lambda candidate: output_error(weight, candidate.rebuild(weight), gram))


def channel_scales(magnitudes: Tensor, alpha: float) -> Tensor:
    """magnitudes^alpha over the geometric mean of its extremes, float16 [in]; all 1 at alpha = 0."""
    wide = magnitudes.double()
    floor = max(FLOOR * wide.max().item(), torch.finfo(torch.float32).tiny)
    powers = wide.clamp(min=floor) ** alpha
    return (powers / (powers.max() * powers.min()).sqrt()).half()


def output_error(weight: Tensor, other: Tensor, gram: Tensor) -> float:
    """||(W - W') X^T||_F^2 = tr(D G D^T), by which one linear map's outputs differ from another's, in float64.

    weight, other: [out, in]; gram: float64 [in, in], X^T X of the inputs X [tokens, in]. Summed over tokens.
    """
    difference = weight.double() - other.double()
    return (difference @ gram.double() * difference).sum().item()


def _scaled(weight: Tensor, channels: Tensor, bits: int, group: int) -> Quantized:
    return round_to_nearest(weight * channels.float(), bits, group)._replace(channels=channels)

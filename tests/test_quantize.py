"""Rounding to nearest, and AWQ's scaling before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from feature_survival.compression.forms import Quantized, read_form
from feature_survival.compression.quantize import (
    ALPHAS,
    activation_aware,
    channel_scales,
    output_error,
    round_to_nearest,
)

PROPERTY = settings(max_examples=40, deadline=None)
widths = st.integers(2, 8)
seeds = st.integers(0, 10**6)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def statistics(inputs: Tensor) -> tuple[Tensor, Tensor]:
    return inputs.double().T @ inputs.double(), inputs.abs().mean(0)


def planted(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight [24, 32] and inputs [200, 32] of which three are a hundred times as large."""
    inputs = noise(200, 32, seed=seed)
    inputs[:, [3, 11, 26]] *= 100
    return noise(24, 32, seed=seed + 1), inputs


@PROPERTY
@given(rows=st.integers(1, 4), groups=st.integers(1, 4), group=st.integers(1, 6), bits=widths, seed=seeds)
def test_rounding_equals_a_loop_over_rows_groups_and_weights(
    rows: int, groups: int, group: int, bits: int, seed: int
) -> None:
    weight = noise(rows, groups * group, seed=seed)
    found = round_to_nearest(weight, bits, group)
    top = 2 ** (bits - 1) - 1
    for i in range(rows):
        for g in range(groups):
            members = weight[i, g * group : (g + 1) * group].tolist()
            scale = float(np.float16(np.float32(max(abs(w) for w in members)) / np.float32(top)))
            assert found.scales[i, g].item() == scale
            for k, value in enumerate(members):
                code = max(-top, min(top, round(float(np.float32(value) / np.float32(scale)))))
                assert found.codes[i, g * group + k].item() == code


def test_rounding_by_hand() -> None:
    weight = torch.tensor([[7.0, -3.4, 0.6, 0.4], [1.75, 1.0, -0.25, 0.1]])
    found = round_to_nearest(weight, bits=4, group=2)
    assert found.scales.tolist() == [[1.0, pytest.approx(0.6 / 7, rel=1e-3)], [0.25, pytest.approx(0.25 / 7, rel=1e-3)]]
    assert found.codes.tolist() == [[7, -3, 7, 5], [7, 4, -7, 3]]
    assert found.width == 4
    assert found.channels is None


@PROPERTY
@given(bits=widths, group=st.sampled_from([1, 2, 5, 10, 20]), size=st.sampled_from([1e-4, 1.0, 1e3]), seed=seeds)
def test_the_error_is_at_most_half_a_scale(bits: int, group: int, size: float, seed: int) -> None:
    weight = size * noise(6, 20, seed=seed)
    found = round_to_nearest(weight, bits, group)
    top = 2 ** (bits - 1) - 1
    scales = found.scales.float().repeat_interleave(group, dim=1)
    slack = top * (scales * 2**-11 + 2**-25)  # the largest weight, where rounding made its scale smaller
    assert ((weight - found.rebuild(weight)).abs() <= scales / 2 + slack).all()
    assert found.codes.abs().max() <= top


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [8, 16, 64])
def test_rounding_equals_the_fake_quantization_of_torch(bits: int, group: int) -> None:
    weight = noise(48, 64)
    found = round_to_nearest(weight, bits, group)
    top = 2 ** (bits - 1) - 1
    scales = found.scales.float().flatten()
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    rival = torch.fake_quantize_per_channel_affine(weight.view(-1, group), scales, zeros, 0, -top, top)
    assert torch.allclose(found.rebuild(weight), rival.view(48, 64), rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_codes_of_eight_bits_equal_the_quantization_of_torch_by_row() -> None:
    weight = noise(16, 40)
    found = round_to_nearest(weight, 8, 40)
    zeros = torch.zeros(16, dtype=torch.int64)
    rival = torch.quantize_per_channel(weight, found.scales.double().flatten(), zeros, 0, torch.qint8)
    assert torch.equal(found.codes, rival.int_repr().clamp(min=-127))


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_rounding_equals_torchao(bits: int) -> None:
    pytest.importorskip("torchao")
    from torchao.quantization import quant_primitives as rival

    weight, block, top = noise(24, 64), (1, 16), 2 ** (bits - 1) - 1
    found = round_to_nearest(weight, bits, 16)
    limits: dict[str, Any] = {"quant_min": -top, "quant_max": top}
    scales, zeros = rival.choose_qparams_affine(
        weight, rival.MappingType.SYMMETRIC, block, torch.int8, eps=1e-9, scale_dtype=torch.float32, **limits
    )
    assert torch.allclose(found.scales.float(), scales.view(24, 4), rtol=2**-11, atol=0)
    stored = found.scales.float().reshape(scales.shape)
    assert torch.equal(found.codes, rival.quantize_affine(weight, block, stored, zeros, torch.int8, **limits))


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-7, 1e30])
def test_groups_beyond_half_precision_keep_finite_positive_scales(size: float) -> None:
    weight = torch.cat([torch.full((2, 4), size), noise(2, 4)], dim=1)
    found = round_to_nearest(weight, bits=4, group=4)
    assert found.scales.isfinite().all()
    assert (found.scales > 0).all()
    assert found.rebuild(weight).isfinite().all()
    if size < 1e-20:
        assert not found.codes[:, :4].any()


def test_codes_that_are_already_on_the_grid_come_back_exactly() -> None:
    weight = torch.arange(-7, 8).float().view(1, 15) / 8
    assert torch.equal(round_to_nearest(weight, 4, 15).rebuild(weight), weight)


@pytest.mark.parametrize("columns", [10, 32])
def test_bits_and_groups_that_cannot_be_are_refused(columns: int) -> None:
    for group in (0, -2, 3, 64):
        with pytest.raises(ValueError, match=f"groups of {group} do not divide {columns} inputs"):
            round_to_nearest(noise(2, columns), 4, group)
    for bits in (1, 9):
        with pytest.raises(ValueError, match=f"2 to 8 bits, not {bits}"):
            round_to_nearest(noise(2, columns), bits, 2)


@pytest.mark.parametrize("aware", [False, True])
def test_a_weight_over_transposed_storage_can_be_saved_like_any_other(aware: bool) -> None:
    weight = noise(8, 6).T.contiguous().T
    gram, magnitudes = statistics(noise(20, 6))
    found = activation_aware(weight, gram, magnitudes, 8, 3) if aware else round_to_nearest(weight, 8, 3)
    back = read_form(load(save(found.tensors())), 6)
    assert torch.equal(back.rebuild(weight), found.rebuild(weight))


@PROPERTY
@given(seed=seeds)
def test_the_output_error_is_that_of_the_outputs(seed: int) -> None:
    weight, other, inputs = noise(3, 5, seed=seed), noise(3, 5, seed=seed + 1), noise(9, 5, seed=seed + 2)
    outputs = (weight.double() - other.double()) @ inputs.double().T
    assert output_error(weight, other, statistics(inputs)[0]) == pytest.approx(outputs.square().sum().item())
    assert output_error(weight, weight, statistics(inputs)[0]) == 0


@PROPERTY
@given(bits=widths, group=st.sampled_from([1, 4, 12]), spread=st.sampled_from([0.0, 1.0, 3.0]), seed=seeds)
def test_scaling_is_never_worse_than_plain_rounding_on_the_calibration_inputs(
    bits: int, group: int, spread: float, seed: int
) -> None:
    weight, inputs = noise(6, 12, seed=seed), noise(30, 12, seed=seed + 1) * (spread * noise(12, seed=seed + 2)).exp()
    gram, magnitudes = statistics(inputs)
    aware, plain = activation_aware(weight, gram, magnitudes, bits, group), round_to_nearest(weight, bits, group)
    assert output_error(weight, aware.rebuild(weight), gram) <= output_error(weight, plain.rebuild(weight), gram)


@pytest.mark.parametrize("bits", [3, 4])
def test_scaling_halves_the_error_where_a_few_inputs_are_huge(bits: int) -> None:
    weight, inputs = planted()
    gram, magnitudes = statistics(inputs)
    aware, plain = activation_aware(weight, gram, magnitudes, bits, 16), round_to_nearest(weight, bits, 16)
    assert output_error(weight, aware.rebuild(weight), gram) < 0.5 * output_error(weight, plain.rebuild(weight), gram)
    assert aware.channels is not None
    assert set(aware.channels.topk(3).indices.tolist()) == {3, 11, 26}


def by_hand(weight: np.ndarray, magnitudes: np.ndarray, alpha: float, bits: int, group: int) -> tuple[Any, Any]:
    """Scales of inputs and the weight that AWQ makes at one alpha, in numpy."""
    scales = magnitudes.astype(np.float64) ** alpha
    scales = (scales / np.sqrt(scales.max() * scales.min())).astype(np.float16).astype(np.float32)
    top = 2 ** (bits - 1) - 1
    made = np.empty_like(weight)
    for row, out in zip(weight * scales, made, strict=True):
        for start in range(0, len(row), group):
            part = row[start : start + group]
            step = np.float32(np.float16(np.abs(part).max() / top))
            out[start : start + group] = np.clip(np.round(part / step), -top, top) * step
    return scales, made / scales


@pytest.mark.parametrize(("bits", "group", "seed"), [(3, 16, 0), (4, 32, 2), (4, 8, 4), (8, 16, 6)])
def test_the_chosen_scales_are_those_of_the_smallest_error_of_the_outputs(bits: int, group: int, seed: int) -> None:
    weight, inputs = planted(seed)
    found = activation_aware(weight, *statistics(inputs), bits, group)
    errors, made = [], []
    for step in range(20):
        scales, other = by_hand(weight.numpy(), inputs.abs().mean(0).numpy(), step / 20, bits, group)
        made.append((scales, other))
        errors.append(float((((weight.numpy() - other).astype(np.float64) @ inputs.double().numpy().T) ** 2).sum()))
    scales, other = made[int(np.argmin(errors))]
    assert found.channels is not None
    assert found.channels.float().tolist() == scales.tolist()
    assert np.allclose(found.rebuild(weight).numpy(), other, rtol=1e-6)
    assert int(np.argmin(errors)) > 0


def test_of_equal_errors_the_smallest_alpha_is_kept() -> None:
    gram, magnitudes = statistics(planted()[1])
    found = activation_aware(torch.zeros(4, 32), gram, magnitudes, 4, 8)
    assert found.channels is not None
    assert found.channels.tolist() == [1.0] * 32


def test_channel_scales_by_hand() -> None:
    magnitudes = torch.tensor([1.0, 4.0, 16.0])
    assert channel_scales(magnitudes, 0.5).tolist() == [0.5, 1.0, 2.0]
    assert channel_scales(magnitudes, 0).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("magnitudes", [[0.0, 0, 0], [0, 1, 1e4], [1e-30, 1e-20, 0], [1e30, 1, 0]])
def test_inputs_that_are_never_active_have_finite_positive_scales(alpha: float, magnitudes: list[float]) -> None:
    scales = channel_scales(torch.tensor(magnitudes), alpha)
    assert scales.isfinite().all()
    assert (scales > 0).all()


def test_the_grid_is_twenty_values_from_nothing_to_below_one() -> None:
    assert (ALPHAS[0], len(ALPHAS), ALPHAS[-1]) == (0, 20, 0.95)


def test_the_result_is_a_form_with_a_scale_for_every_input() -> None:
    weight, inputs = planted()
    found = activation_aware(weight, *statistics(inputs), bits=3, group=16)
    assert isinstance(found, Quantized)
    assert found.bits() == 24 * 32 * 3 + (24 * 2 + 32) * 16

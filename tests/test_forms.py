"""Stored forms of a weight: there and back, what they cost, what they refuse."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from feature_survival.compression.forms import (
    Form,
    LowRank,
    Masked,
    Quantized,
    Updated,
    pack_nibbles,
    read_form,
    unpack_nibbles,
)

PROPERTY = settings(max_examples=40, deadline=None)
rows, halves = st.integers(1, 5), st.integers(1, 9)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(0), dtype=torch.int8)


def through_a_file(form: Form, columns: int) -> Form:
    return read_form(load(save(form.tensors())), columns)


def same(form: Form, other: Form) -> bool:
    return type(form) is type(other) and save(form.tensors()) == save(other.tensors())


@PROPERTY
@given(rows=rows, columns=st.integers(1, 37))
def test_masks_come_back_from_a_file_at_every_width(rows: int, columns: int) -> None:
    base, mask = noise(rows, columns), noise(rows, columns, seed=1) > 0
    expected = [
        [value if kept else 0 for value, kept in zip(*pair, strict=True)]
        for pair in zip(base.tolist(), mask.tolist(), strict=True)
    ]
    back = through_a_file(Masked(mask), columns)
    assert same(back, Masked(mask))
    assert back.rebuild(base).tolist() == expected


@PROPERTY
@given(rows=rows, columns=st.integers(1, 37))
def test_updated_weights_come_back_from_a_file_row_by_row(rows: int, columns: int) -> None:
    mask = noise(rows, columns, seed=1) > 0
    changed = noise(rows, columns, seed=2).half()
    back = through_a_file(Updated(mask, changed[mask]), columns)
    assert same(back, Updated(mask, changed[mask]))
    assert torch.equal(back.rebuild(noise(rows, columns)), (changed * mask).float())


@PROPERTY
@given(rows=rows, groups=halves, group=st.integers(1, 7), width=st.integers(2, 8), scaled=st.booleans())
def test_codes_come_back_from_a_file_at_every_width(
    rows: int, groups: int, group: int, width: int, scaled: bool
) -> None:
    top = 2 ** (width - 1)
    columns = groups * group
    form = Quantized(
        integers(-top, top - 1, rows, columns),
        noise(rows, groups).abs().half(),
        width,
        noise(columns, seed=1).abs().half() + 1 if scaled else None,
    )
    back = through_a_file(form, columns)
    assert same(back, form)
    found = back.rebuild(noise(rows, columns))
    for i in range(rows):
        for j in range(columns):
            weight = form.codes[i, j].item() * form.scales[i, j // group].item()
            channel = 1 if form.channels is None else form.channels[j].item()
            assert found[i, j].item() == pytest.approx(weight / channel, rel=1e-6)


@PROPERTY
@given(rows=rows, columns=st.integers(1, 9), rank=st.integers(1, 9))
def test_factors_come_back_from_a_file(rows: int, columns: int, rank: int) -> None:
    form = LowRank(noise(rows, rank).half(), noise(rank, columns, seed=1).half())
    back = through_a_file(form, columns)
    assert same(back, form)
    expected = (form.left.double() @ form.right.double()).float()
    assert torch.allclose(back.rebuild(noise(rows, columns)), expected, atol=1e-5)


def test_a_rebuilt_weight_has_the_type_of_the_base() -> None:
    base = noise(2, 4).bfloat16()
    mask = torch.ones(2, 4, dtype=torch.bool)
    forms: list[Form] = [
        Masked(mask),
        Updated(mask, noise(8).half()),
        Quantized(integers(-7, 7, 2, 4), noise(2, 2).half(), 4),
        LowRank(noise(2, 1).half(), noise(1, 4).half()),
    ]
    assert {form.rebuild(base).dtype for form in forms} == {torch.bfloat16}


def test_bits_by_hand() -> None:
    mask = torch.tensor([[True, False, True, True], [False, False, True, True]])
    assert Masked(mask).bits() == 5 * 16 + 8
    assert Updated(mask, torch.zeros(5).half()).bits() == 5 * 16 + 8
    codes = torch.zeros(4, 16, dtype=torch.int8)
    assert Quantized(codes, torch.zeros(4, 2).half(), 4).bits() == 64 * 4 + 8 * 16
    assert Quantized(codes, torch.zeros(4, 2).half(), 3, torch.ones(16).half()).bits() == 64 * 3 + (8 + 16) * 16
    assert LowRank(torch.zeros(6, 2).half(), torch.zeros(2, 10).half()).bits() == (12 + 20) * 16


def test_every_pair_of_nibbles_is_one_byte_the_first_in_the_high_half() -> None:
    values = torch.arange(-8, 8, dtype=torch.int8)
    pairs = torch.cartesian_prod(values, values)
    packed = pack_nibbles(pairs)
    assert packed.flatten().tolist() == [high % 16 * 16 + low % 16 for high, low in pairs.tolist()]
    assert torch.equal(unpack_nibbles(packed, 2), pairs)


@PROPERTY
@given(rows=rows, columns=st.integers(1, 40))
def test_nibbles_survive_packing_at_every_width(rows: int, columns: int) -> None:
    codes = integers(-8, 7, rows, columns)
    packed = pack_nibbles(codes)
    assert (packed.dtype, packed.shape) == (torch.uint8, (rows, -(-columns // 2)))
    assert torch.equal(unpack_nibbles(packed, columns), codes)


def test_codes_of_up_to_four_bits_take_half_a_byte_and_wider_ones_a_byte() -> None:
    stored = [Quantized(integers(-2, 1, 2, 6), noise(2, 1).half(), width).tensors()["codes"] for width in (2, 4, 5)]
    assert [list(codes.shape) for codes in stored] == [[2, 3], [2, 3], [2, 6]]


@pytest.mark.parametrize("packed", [torch.zeros(2, 2, dtype=torch.uint8), torch.zeros(2, 3, dtype=torch.int8)])
def test_packed_codes_of_another_width_or_type_are_refused(packed: Tensor) -> None:
    with pytest.raises(ValueError, match="do not hold rows of 5 codes"):
        unpack_nibbles(packed, 5)


BASE = (2, 6)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (Masked(torch.ones(2, 5) > 0), r"mask is \[2, 5\], the weight \[2, 6\]"),
        (Masked(torch.ones(1, 6) > 0), "mask is"),  # would broadcast
        (Updated(torch.ones(3, 6) > 0, torch.zeros(18).half()), "mask is"),
        (Updated(torch.ones(2, 6) > 0, torch.zeros(11).half()), "11 values for a mask that keeps 12"),
        (Updated(torch.ones(2, 6) > 0, torch.zeros(1).half()), "1 values"),
        (Quantized(integers(-1, 1, 2, 5), torch.ones(2, 1).half(), 4), "codes is"),
        (Quantized(integers(-1, 1, 2, 6), torch.ones(2, 4).half(), 4), "scales .* do not divide"),
        (Quantized(integers(-1, 1, 2, 6), torch.ones(1, 2).half(), 4), "scales .* do not divide"),
        (Quantized(integers(-1, 1, 2, 6), torch.ones(2, 2).half(), 4, torch.ones(5).half()), "channels"),
        (Quantized(integers(-1, 1, 2, 6), torch.ones(2, 2).half(), 4, torch.ones(1).half()), "channels"),
        (Quantized(integers(-1, 1, 2, 6), torch.ones(2).half(), 4), "scales"),
        (Quantized(integers(-1, 1, 2, 6), torch.ones(2, 0).half(), 4), "scales"),
        (LowRank(torch.ones(2, 1).half(), torch.ones(1, 5).half()), "product of the factors"),
        (LowRank(torch.ones(2, 1).half(), torch.ones(2, 6).half()), "factors .* have no product"),
        (LowRank(torch.ones(2).half(), torch.ones(2, 6).half()), "product of the factors"),
        (LowRank(torch.ones(2, 1).half(), torch.ones(1).half()), "product of the factors"),
    ],
)
def test_forms_of_another_shape_are_refused(form: Form, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        form.rebuild(noise(*BASE))


@pytest.mark.parametrize("names", [(), ("values",), ("mask", "codes"), ("codes", "scales"), ("left",), ("channels",)])
def test_names_that_no_form_has_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="no form of a weight has the tensors"):
        read_form({name: torch.zeros(1) for name in names}, 1)


@pytest.mark.parametrize(
    "form", [Masked(torch.ones(2, 9) > 0), Quantized(integers(-7, 7, 2, 9), noise(2, 1).half(), 3)]
)
def test_stored_bits_of_another_width_are_refused(form: Form) -> None:
    with pytest.raises(ValueError, match="not hold rows of 20"):
        through_a_file(form, 20)

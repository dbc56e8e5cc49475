from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.fp8 import (
    AMAX_FLOOR,
    E4M3_MAX,
    dequantise_groups,
    quantise_group_reference,
    quantise_groups,
    round_trip,
)

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)


def e4m3_value(code: int) -> float:
    """The value of a code by the definition of OCP E4M3: bias 7, no infinities, 0x7F is NaN."""
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = code >> 3 & 0xF, code & 0x7
    if exponent == 0xF and mantissa == 0x7:
        return math.nan
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


ALL_VALUES = [e4m3_value(code) for code in range(256)]
FINITE = [v for v in ALL_VALUES if v == v]


def test_dequantising_every_code_gives_its_value_times_the_scale() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    for scale in (1.0, 2.0**-22, 2.0**40):
        found = dequantise_groups(codes[None], torch.tensor([[scale]]), torch.float32)[0]
        for value, expected in zip(found.tolist(), ALL_VALUES, strict=True):
            assert value == expected * scale or (value != value and expected != expected)


def test_every_representable_value_survives_the_round_trip() -> None:
    for scale in (1.0, 2.0**-10, 2.0**17):
        x = torch.tensor(FINITE) * scale  # the largest is 448 * scale, so the scale is found again
        values, scales = quantise_groups(x, len(FINITE))
        assert scales.tolist() == [scale]
        assert torch.equal(round_trip(x, len(FINITE)), x)
        assert values.float().tolist() == FINITE


def test_values_go_to_the_nearest_code_ties_to_even() -> None:
    grid = ALL_VALUES[:127]  # codes of positive values ascend with them; an even one ends in 0
    for code in range(126):
        low, high = grid[code : code + 2]
        middle, even = (low + high) / 2, grid[code + code % 2]
        nudge = (high - low) / 64
        x = torch.tensor([E4M3_MAX, middle - nudge, middle, middle + nudge])
        assert quantise_groups(x, 4)[0].float().tolist() == [E4M3_MAX, low, even, high]


@pytest.mark.parametrize("exponent", range(-22, 110))
def test_the_scale_is_the_power_of_two_at_or_above_amax_over_448(exponent: int) -> None:
    exact = 448.0 * 2.0**exponent
    if exact < AMAX_FLOOR:
        exact = 448.0 * 2.0 ** math.ceil(math.log2(AMAX_FLOOR / 448.0))
    scale = exact / 448.0
    above = torch.nextafter(torch.tensor(exact), torch.tensor(math.inf)).item()
    below = torch.nextafter(torch.tensor(exact), torch.tensor(0.0)).item()
    for amax, expected in ((exact, scale), (above, 2 * scale), (below, scale)):
        _, scales = quantise_groups(torch.tensor([amax, -amax / 3]), 2)
        assert scales.item() == expected


def test_a_zero_group_has_a_positive_scale_and_no_nan() -> None:
    values, scales = quantise_groups(torch.zeros(3, 256))
    floor = 2.0 ** math.ceil(math.log2(AMAX_FLOOR / E4M3_MAX))
    assert scales.eq(floor).all() and scales.shape == (3, 2)
    assert dequantise_groups(values, scales, torch.float32).eq(0).all()


@given(st.lists(FLOATS, min_size=8, max_size=8))
def test_a_group_matches_plain_floats(x: list[float]) -> None:
    values, scales = quantise_groups(torch.tensor([x]), 8)
    expected, scale = quantise_group_reference(x)
    assert scales.item() == scale
    assert values.float()[0].tolist() == expected


@given(st.lists(st.floats(-(2.0**14), 2.0**14, width=32), min_size=4, max_size=4))
def test_the_reference_itself_picks_the_nearest_code(x: list[float]) -> None:
    values, scale = quantise_group_reference(x)
    for wanted, value in zip(x, values, strict=True):
        assert value in FINITE
        assert abs(wanted / scale - value) == min(abs(wanted / scale - v) for v in FINITE)


@given(st.lists(FLOATS, min_size=16, max_size=16))
def test_rounding_twice_is_rounding_once(x: list[float]) -> None:
    once = round_trip(torch.tensor([x]), 8)
    assert torch.equal(round_trip(once, 8), once)


def test_each_group_has_its_own_scale() -> None:
    x = torch.cat((torch.full((128,), 448.0), torch.full((128,), 7.0)))
    values, scales = quantise_groups(x)
    assert scales.tolist() == [1.0, 2.0**-6]
    assert values.float().eq(448.0).all()


def test_a_ragged_width_is_refused() -> None:
    with pytest.raises(ValueError, match="width is 130"):
        quantise_groups(torch.zeros(2, 130))

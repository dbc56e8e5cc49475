from __future__ import annotations

from typing import Any

import pytest
import torch

from kernels.hopper.split_combine import SPLITS, choose_splits, split_combine
from kernels.split_combine import split_combine_reference


def parts(tokens: int, splits: int, heads: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(splits)
    partials = torch.randn(tokens, splits, heads, width, generator=generator)
    lse = torch.randn(tokens, splits, heads, generator=generator) * 20
    empty = torch.rand(tokens, splits, heads, generator=generator) < 0.3
    empty[0] = True  # rows without any key
    empty[1, 0], empty[1, 1:] = True, False
    lse[empty] = -torch.inf
    partials[empty] = torch.nan  # not to be looked at
    return partials, lse


@pytest.mark.parametrize(("splits", "heads"), [(1, 16), (2, 3), (5, 16), (16, 4)])
def test_matches_the_reference(device: torch.device, splits: int, heads: int) -> None:
    partials, lse = parts(3, splits, heads, 32)
    out, natural = split_combine(partials.to(device), lse.to(device), torch.float32)
    expected, expected_lse = split_combine_reference(partials.double(), lse.tolist())
    # Float32 sums of at most 16 terms and exp2 to some 2 units in the last place.
    torch.testing.assert_close(out.double().cpu(), expected, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(
        natural.double().cpu(),
        torch.tensor(expected_lse, dtype=torch.float64),
        atol=1e-5,
        rtol=1e-6,
    )
    assert out[0].eq(0).all() and natural[0].eq(-torch.inf).all()


def test_a_single_part_comes_back_as_it_is(device: torch.device) -> None:
    partials, lse = parts(3, 1, 8, 16)
    lse[1:] = 3.25
    partials[1:] = 1.5
    out, _ = split_combine(partials.to(device), lse.to(device), torch.bfloat16)
    assert out[1:].eq(1.5).all()


def test_an_empty_part_changes_no_bit(device: torch.device) -> None:
    partials, lse = torch.randn(2, 3, 4, 16), torch.randn(2, 3, 4)
    more = torch.cat((partials, torch.full((2, 2, 4, 16), torch.nan)), dim=1)
    more_lse = torch.cat((lse, torch.full((2, 2, 4), -torch.inf)), dim=1)
    few = split_combine(partials.to(device), lse.to(device), torch.float32)
    many = split_combine(more.to(device), more_lse.to(device), torch.float32)
    assert torch.equal(few[0], many[0]) and torch.equal(few[1], many[1])


GOOD: dict[str, Any] = {
    "partials": torch.zeros(2, 3, 4, 16),
    "lse": torch.zeros(2, 3, 4),
    "dtype": torch.bfloat16,
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"partials": GOOD["partials"].double()}, "partials is float64; must be float32"),
        (
            {"partials": torch.zeros(2, 3, 4, 12)},
            "partials has width 12; it must be a power of two",
        ),
        ({"partials": torch.zeros(2, 3, 4, 32)[..., :16]}, "partials has strides"),
        ({"lse": torch.zeros(2, 4, 3)}, r"lse has shape \[2, 4, 3\]; it must be \[2, 3, 4\]"),
        ({"dtype": torch.int32}, "dtype is torch.int32"),
    ],
)
def test_what_is_not_supported_is_refused(
    device: torch.device, wrong: dict[str, Any], message: str
) -> None:
    arguments = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in {**GOOD, **wrong}.items()
    }
    with pytest.raises(ValueError, match=message):
        split_combine(**arguments)


def test_splits_fill_the_device_and_no_more() -> None:
    assert choose_splits(ctas=2, tiles=32, slots=132) == 16
    assert choose_splits(ctas=132, tiles=32, slots=132) == 1
    assert choose_splits(ctas=16_384, tiles=32, slots=132) == 1
    assert choose_splits(ctas=1, tiles=3, slots=132) == 1  # a part would have a single tile
    assert choose_splits(ctas=1, tiles=0, slots=132) == 1
    assert choose_splits(ctas=60, tiles=32, slots=132) == 2
    # Two waves, the second nearly empty: three of half the length and a bit are done before.
    assert choose_splits(ctas=140, tiles=32, slots=132) == 2
    for tiles in range(1, 40):
        splits = choose_splits(1, tiles, 132)
        assert splits in SPLITS and (splits == 1 or splits * 2 <= tiles)

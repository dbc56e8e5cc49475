"""Against float64, and bit by bit against itself with other rows beside.

Products of bfloat16 are exact in float32; sums of up to 3,000 of them differ from float64's by less
than 3000 * 2^-24 of the sum of magnitudes, which random signs keep near 1e-5 of the largest output.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.hopper.fixed_order_linear import bfloat16_pieces, fixed_order_linear, part_count

TOLERANCE = 3e-5


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(found: Tensor, x: Tensor, weight: Tensor, tolerance: float = TOLERANCE) -> None:
    """weight [G, N, K], whole."""
    expected = torch.einsum("tgk,gnk->tgn", x.cpu().double(), weight.cpu().double())
    error = (found.cpu().double() - expected).abs().max()
    assert error <= tolerance * expected.abs().max()


@pytest.mark.parametrize(
    ("tokens", "groups", "outputs", "channels"),
    [(1, 1, 8, 128), (65, 1, 130, 72), (3, 5, 16, 20), (5, 1, 40, 2100)],
)
def test_float32_weights_match_float64(
    tokens: int, groups: int, outputs: int, channels: int, device: torch.device
) -> None:
    x = randn(tokens, groups, channels, seed=1).bfloat16().to(device)
    weight = randn(groups, outputs, channels, seed=2).to(device)
    close(fixed_order_linear(x, bfloat16_pieces(weight)), x, weight)


def test_weights_and_outputs_of_any_strides(device: torch.device) -> None:
    """As the absorbing products have them: weights [G, K, N], a part of a wider row as the output,
    whose neighbours stay as they are."""
    wide = randn(7, 4, 50).bfloat16().to(device)
    weight = randn(4, 32, 48, seed=1).bfloat16().to(device)
    out = torch.full((7, 4, 60), torch.nan, dtype=torch.bfloat16, device=device)
    found = fixed_order_linear(
        wide[..., 3:35], weight.transpose(1, 2)[None], torch.bfloat16, out=out[..., :48]
    )
    assert found.data_ptr() == out.data_ptr() and out[..., 48:].isnan().all()
    close(found, wide[..., 3:35], weight.transpose(1, 2), 2**-8)


@pytest.mark.parametrize(
    ("outputs", "channels", "dtype"), [(24, 200, torch.float32), (40, 1100, torch.bfloat16)]
)
def test_a_rows_bits_do_not_depend_on_the_batch(
    outputs: int, channels: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Alone, beside others, and elsewhere in its tile or in another one."""
    x = randn(70, 1, channels, seed=3).bfloat16().to(device)
    pieces = bfloat16_pieces(randn(1, outputs, channels, seed=4)).to(device)
    alone = fixed_order_linear(x[5:6], pieces, dtype)
    assert part_count(1, outputs, channels) == (2 if channels == 1100 else 1)
    for rows in (slice(0, 9), slice(2, 69)):
        found = fixed_order_linear(x[rows], pieces, dtype)
        assert torch.equal(found[5 - rows.start], alone[0])
    moved = fixed_order_linear(x.roll(60, 0), pieces, dtype)
    assert torch.equal(moved[65], alone[0])


def test_the_order_of_addition_is_that_of_the_weights_shape() -> None:
    """7168 channels are added in 7 parts for a router, in one for a vocabulary, at any batch."""
    assert part_count(1, 256, 7168) == 7 and part_count(1, 129_280, 7168) == 1
    assert part_count(128, 512, 128) == part_count(128, 128, 512) == 1


def test_pieces_sum_to_the_weight() -> None:
    weight = randn(64, 64) * torch.logspace(-30, 30, 64)
    pieces = bfloat16_pieces(weight)
    assert pieces.shape == (3, 64, 64)
    assert torch.equal(pieces.double().sum(0), weight.double())
    assert bfloat16_pieces(weight.bfloat16()).shape[0] == 1
    assert bfloat16_pieces(weight.bfloat16().float() * 257).shape[0] == 2


def test_no_tokens_give_no_rows(device: torch.device) -> None:
    x, weights = torch.zeros(0, 1, 16), torch.zeros(1, 1, 8, 16)
    found = fixed_order_linear(x.bfloat16().to(device), weights.bfloat16().to(device))
    assert found.shape == (0, 1, 8)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"x": torch.zeros(2, 1, 16)}, "x is float32; must be bfloat16"),
        ({"weights": torch.zeros(1, 2, 8, 16).bfloat16()}, r"weights has shape \[1, 2, 8, 16\]"),
        ({"weights": torch.zeros(0, 1, 8, 16).bfloat16()}, "must not be empty"),
        ({"dtype": torch.float64}, "dtype is torch.float64; allowed are"),
        ({"out": torch.zeros(2, 1, 7)}, r"out has shape \[2, 1, 7\]; it must be \[2, 1, 8\]"),
        ({"out": torch.zeros(2, 1, 8).bfloat16()}, "out is bfloat16; must be float32"),
        (
            {
                "x": torch.zeros(2, 1, 2048).bfloat16(),
                "weights": torch.zeros(1, 1, 8, 2048).bfloat16(),
                "out": torch.zeros(2, 1, 8),
            },
            "the 2048 channels are added in 2 parts; out must be None",
        ),
    ],
)
def test_what_is_not_supported_is_refused(
    device: torch.device, wrong: dict[str, Any], message: str
) -> None:
    good = {
        "x": torch.zeros(2, 1, 16).bfloat16(),
        "weights": torch.zeros(1, 1, 8, 16).bfloat16(),
        "dtype": torch.float32,
    }
    arguments = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in {**good, **wrong}.items()
    }
    with pytest.raises(ValueError, match=message):
        fixed_order_linear(**arguments)


def test_pieces_of_other_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weight is torch.float64; it must be"):
        bfloat16_pieces(torch.zeros(2, 2, dtype=torch.float64))

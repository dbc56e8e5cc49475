"""Against the float64 reference on the very e4m3 values and scales that the kernels read.

The interpreter multiplies e4m3 values exactly and adds in float32: over at most 640 channels the
sums differ from float64's by less than 640 * 2^-24 of the sum of magnitudes, which random signs
keep near 1e-6 of the largest output. What the FP8 tensor cores' 14-bit sums add to that is left to
a GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.fp8 import quantise_groups
from kernels.fp8_linear import BLOCK, fp8_linear_reference
from kernels.fp8_linear import fp8_linear as torch_fp8_linear
from kernels.hopper.fp8_linear import fp8_linear, split_count

TOLERANCE = 2e-5


def operands(
    tokens: int, width: int, outputs: int, device: torch.device, *, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x with token-contiguous scales, a weight with scales of any float32 value."""
    generator = torch.Generator().manual_seed(seed)
    x, x_scales = quantise_groups(torch.randn(tokens, width, generator=generator))
    weight = (torch.randn(outputs, width, generator=generator) * 100).to(torch.float8_e4m3fn)
    blocks = -(-outputs // BLOCK), width // BLOCK
    weight_scales = torch.rand(*blocks, generator=generator) * 1e-2 + 1e-4
    parts = x, x_scales.T.contiguous().T, weight, weight_scales
    return tuple(part.to(device) for part in parts)  # type: ignore[return-value]


def close(found: Tensor, parts: tuple[Tensor, ...], tolerance: float = TOLERANCE) -> None:
    expected = fp8_linear_reference(*(part.cpu() for part in parts))
    error = (found.cpu().double() - expected).abs().max()
    assert error <= tolerance * expected.abs().max()


@pytest.mark.parametrize("tokens", [1, 16, 17, 64, 65, 130])
@pytest.mark.parametrize("outputs", [64, 136, 192])
def test_both_forms_match_float64(tokens: int, outputs: int, device: torch.device) -> None:
    """136 and 192 outputs: the last block of the weight and of its scales is ragged."""
    parts = operands(tokens, 256, outputs, device)
    close(fp8_linear(*parts, torch.float32), parts)


def test_slabs_that_do_not_divide_into_the_splits(device: torch.device) -> None:
    """9 slabs in 2 parts: the second runs one slab over the end, where all must read as zero."""
    parts = operands(3, 9 * BLOCK, 64, device)
    assert split_count(1, 9, 6) == 2
    close(fp8_linear(*parts, torch.float32), parts)


def test_split_tiles_of_many_tokens(device: torch.device) -> None:
    parts = operands(70, 9 * BLOCK, 100, device)
    assert split_count(1, 9, 2) == 2
    close(fp8_linear(*parts, torch.float32), parts)


def test_bands_of_token_tiles_cover_every_tile(device: torch.device) -> None:
    """9 token tiles: one band of 8 and a band of 1."""
    parts = operands(8 * 128 + 1, BLOCK, 136, device)
    expected = torch_fp8_linear(*(part.cpu() for part in parts), torch.float32)
    found = fp8_linear(*parts, torch.float32).cpu()
    assert torch.allclose(found, expected, rtol=0, atol=TOLERANCE * expected.abs().max().item())


@pytest.mark.parametrize("tokens", [5, 70])
def test_values_outside_the_operands_are_never_read(tokens: int, device: torch.device) -> None:
    """x, its scales and the output's neighbours are parts of larger buffers full of NaN."""
    x, x_scales, weight, weight_scales = operands(tokens, 256, 72, device)
    wide_x = torch.full((tokens + 9, 384), torch.nan, device=device).to(torch.float8_e4m3fn)
    wide_x[:tokens, :256] = x
    wide_scales = torch.full((2, tokens + 5), torch.nan, device=device)
    wide_scales[:, :tokens] = x_scales.T
    wide_weight = torch.full((80, 256), torch.nan, device=device).to(torch.float8_e4m3fn)
    wide_weight[:72] = weight
    found = fp8_linear(
        wide_x[:tokens, :256],
        wide_scales.T[:tokens],
        wide_weight[:72],
        weight_scales,
        torch.float32,
    )
    close(found, (x, x_scales, weight, weight_scales))


def test_scales_of_either_order(device: torch.device) -> None:
    x, x_scales, weight, weight_scales = operands(5, 256, 64, device)
    found = fp8_linear(x, x_scales.contiguous(), weight, weight_scales, torch.float32)
    assert torch.equal(found, fp8_linear(x, x_scales, weight, weight_scales, torch.float32))


@pytest.mark.parametrize(("dtype", "ulp"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_the_output_is_rounded_once(dtype: torch.dtype, ulp: float, device: torch.device) -> None:
    """Half a unit in the last place, and float32's roundings before it."""
    parts = operands(3, 256, 64, device)
    found = fp8_linear(*parts, dtype)
    assert found.dtype == dtype
    close(found, parts, ulp + TOLERANCE)


def test_no_tokens_give_no_rows(device: torch.device) -> None:
    x, x_scales, weight, weight_scales = operands(1, 128, 64, device)
    assert fp8_linear(x[:0], x_scales[:0], weight, weight_scales).shape == (0, 64)


def test_the_torch_op_matches_float64() -> None:
    parts = operands(5, 384, 136, torch.device("cpu"))
    close(torch_fp8_linear(*parts, torch.float32), parts)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.zeros(4, 256)}, "x is float32; must be float8_e4m3fn"),
        ({"x": torch.zeros(4, 200).to(torch.float8_e4m3fn)}, "x has 200 channels"),
        ({"x": torch.zeros(256, 4).to(torch.float8_e4m3fn).T}, "x has strides"),
        ({"x": torch.zeros(4, 264).to(torch.float8_e4m3fn)[:, :256]}, "row stride of 264 bytes"),
        ({"x_scales": torch.zeros(4, 3)}, r"x_scales has shape \[4, 3\]; it must be \[4, 2\]"),
        ({"weight": torch.zeros(64, 128).to(torch.float8_e4m3fn)}, "weight has shape"),
        ({"weight_scales": torch.zeros(2, 2)}, r"it must be \[1, 2\]"),
        ({"dtype": torch.float64}, "dtype is torch.float64; allowed are"),
    ],
)
def test_unsupported_arguments_are_named(
    changed: dict[str, Any], message: str, device: torch.device
) -> None:
    names = ("x", "x_scales", "weight", "weight_scales")
    arguments: dict[str, Any] = dict(zip(names, operands(4, 256, 64, device), strict=True))
    arguments |= {k: v.to(device) if isinstance(v, Tensor) else v for k, v in changed.items()}
    with pytest.raises(ValueError, match=message):
        fp8_linear(**arguments)

"""FP8 blocks: what is stored, and what training sees of it."""

from __future__ import annotations

import pytest
import torch

from training.quantisation import dequantise_blocks, fake_quantise, quantise_blocks


@pytest.mark.parametrize("shape", [(128, 128), (160, 256), (7, 130), (300, 1)])
def test_round_trip_is_close_and_scales_are_powers_of_two(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    quantised, scale = quantise_blocks(weight)
    assert quantised.dtype == torch.float8_e4m3fn and quantised.shape == weight.shape
    assert scale.shape == (-(-shape[0] // 128), -(-shape[1] // 128))
    assert torch.equal(scale.log2(), scale.log2().round())
    error = (dequantise_blocks(quantised, scale) - weight).abs()
    # e4m3 has three mantissa bits; below its normal range the step is fixed.
    assert (error <= weight.abs() / 16 + scale.max() * 2**-9).all()


def test_rounding_twice_changes_nothing() -> None:
    weight = torch.randn(160, 256)
    once = dequantise_blocks(*quantise_blocks(weight))
    assert torch.equal(dequantise_blocks(*quantise_blocks(once)), once)


def test_zero_block_stays_zero() -> None:
    quantised, scale = quantise_blocks(torch.zeros(128, 128))
    assert torch.equal(dequantise_blocks(quantised, scale), torch.zeros(128, 128))
    assert scale.isfinite().all()


def test_gradient_passes_straight_through_a_stack() -> None:
    weight = torch.randn(3, 16, 130, requires_grad=True)
    rounded = fake_quantise(weight)
    assert torch.allclose(rounded[1], dequantise_blocks(*quantise_blocks(weight[1].detach())))
    rounded.sum().backward()
    assert weight.grad is not None and torch.equal(weight.grad, torch.ones_like(weight))

"""Bit for bit against the torch ops where both round alike, else against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.fp8 import AMAX_FLOOR, E4M3_MAX, quantise_group_reference, quantise_groups
from kernels.hopper.quantise import quantise, rms_norm_quantise, swiglu_quantise
from kernels.moe import gated
from kernels.norm import rms_norm_reference


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def codes(values: Tensor) -> Tensor:
    return values.cpu().view(torch.uint8)


def dequantised(values: Tensor, scales: Tensor) -> Tensor:
    return values.cpu().double() * scales.cpu().double().repeat_interleave(128, 1)


def close_to_rounded(values: Tensor, scales: Tensor, exact: Tensor) -> None:
    """Half a step of e4m3 (2^-4 of a value, 2^-10 of a scale below the normal numbers), and 1e-3
    of that for what float16 and float32 rounded before."""
    wide_scales = scales.cpu().double().repeat_interleave(128, 1)
    step = torch.maximum(exact.abs() * 2**-4, wide_scales / 2**10)
    assert bool(((dequantised(values, scales) - exact).abs() <= step * 1.02).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("tokens", [1, 15, 16, 33])
def test_groups_are_those_of_the_torch_op(
    tokens: int, dtype: torch.dtype, device: torch.device
) -> None:
    x = (draw(tokens, 256) * torch.logspace(-6, 4, tokens)[:, None]).to(dtype)
    values, scales = quantise(x.to(device))
    expected, expected_scales = quantise_groups(x)
    assert torch.equal(codes(values), codes(expected))
    assert torch.equal(scales.cpu(), expected_scales)
    assert scales.stride(0) == 1


def test_every_code_comes_back(device: torch.device) -> None:
    """All 254 finite codes in groups whose scale is 1: subnormals, both zeros, the largest."""
    every = torch.arange(256, dtype=torch.uint8)
    every = every[(every & 127) != 127].view(torch.float8_e4m3fn).float()
    x = torch.full((2, 128), E4M3_MAX)
    x[0, :127], x[1, :127] = every[:127], every[127:]
    values, scales = quantise(x.to(device))
    assert torch.equal(scales.cpu(), torch.ones(2, 1))
    assert torch.equal(codes(values), codes(x.to(torch.float8_e4m3fn)))


def test_ties_round_to_even_as_in_plain_python(device: torch.device) -> None:
    """Every midpoint between neighbouring codes, and its float32 neighbours."""
    positive = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middle = (positive[1:] + positive[:-1]) / 2
    near = torch.cat((middle, middle.nextafter(torch.tensor(0.0)), middle.nextafter(middle * 2)))
    x = torch.full((3, 128), E4M3_MAX)
    x[:, :126] = near.view(3, 126)
    values, scales = quantise(x.to(device))
    for row, found, scale in zip(x, values.cpu().float(), scales.cpu(), strict=True):
        expected, expected_scale = quantise_group_reference(row.tolist())
        assert (found.tolist(), scale.item()) == (expected, expected_scale)


def test_scales_change_exactly_at_448_times_a_power_of_two(device: torch.device) -> None:
    edges = 448.0 * 2.0 ** torch.arange(-29, 100)
    beyond = edges.nextafter(torch.tensor(torch.inf))
    x = torch.zeros(2 * len(edges), 128)
    x[:, 5] = torch.cat((edges, beyond))
    scales = quantise(x.to(device))[1].cpu()
    assert torch.equal(scales, quantise_groups(x)[1])
    floor = quantise_groups(torch.zeros(1, 128))[1].item()
    exponents = torch.arange(-29, 100)
    wanted = torch.cat((2.0**exponents, 2.0 ** (exponents + 1))).clamp_min(floor)
    wanted[: len(edges)][edges <= AMAX_FLOOR] = floor
    assert torch.equal(scales[:, 0], wanted)


def test_zero_groups_are_zero(device: torch.device) -> None:
    values, scales = quantise(torch.zeros(2, 256).to(device))
    assert torch.equal(dequantised(values, scales), torch.zeros(2, 256, dtype=torch.float64))
    assert bool((scales > 0).all())


@pytest.mark.parametrize("used", [0, 1, 16, 17])
def test_rows_not_used_are_not_written(used: int, device: torch.device) -> None:
    """Their NaN must reach neither the rows before nor memory: what is there is what was there."""
    x = draw(40, 128)
    x[used:] = torch.nan
    count = torch.tensor([used], dtype=torch.int32, device=device)
    values, scales = quantise(x.to(device), used=count)
    expected, expected_scales = quantise_groups(x[:used])
    assert torch.equal(codes(values)[:used], codes(expected))
    assert torch.equal(scales.cpu()[:used], expected_scales)


@pytest.mark.parametrize("tokens", [1, 17])
def test_swiglu_matches_float64(tokens: int, device: torch.device) -> None:
    wide = (draw(tokens, 768) * 3).half()
    gate_up = wide[:, 128:640]  # strided rows
    values, scales = swiglu_quantise(gate_up.to(device))
    assert values.shape == (tokens, 256)
    gate, up = gate_up.double().chunk(2, 1)
    close_to_rounded(values, scales, gate * torch.sigmoid(gate) * up)
    assert torch.equal(scales.cpu(), quantise_groups(gated(gate_up))[1])


def test_swiglu_of_large_gates_is_finite(device: torch.device) -> None:
    gate_up = torch.tensor([[-2e4] * 128 + [1.0] * 128, [2e4] * 128 + [0.5] * 128])
    values, scales = swiglu_quantise(gate_up.to(device))
    assert torch.equal(dequantised(values, scales)[0], torch.zeros(128, dtype=torch.float64))
    assert bool((dequantised(values, scales)[1] - 1e4).abs().max() <= 1e4 * 2**-4)


@pytest.mark.parametrize("width", [128, 384])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize(("dtype", "ulp"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_rms_norm_matches_float64(
    width: int, with_residual: bool, dtype: torch.dtype, ulp: float, device: torch.device
) -> None:
    wide, residual = draw(5, width + 64).to(dtype), draw(5, width, seed=1).to(dtype)
    x = wide[:, :width]
    weight = draw(width, seed=2) + 1
    found = rms_norm_quantise(
        x.to(device),
        weight.to(device),
        1e-6,
        residual.to(device) if with_residual else None,
        keep_normed=True,
    )
    summed = x + residual if with_residual else x
    assert torch.equal(found.summed.cpu(), summed)
    exact = rms_norm_reference(summed.double(), weight.double(), 1e-6)
    assert found.normed is not None
    normed = found.normed.cpu()
    # Half a unit in the last place, and float32's roundings before it.
    assert bool(((normed.double() - exact).abs() <= exact.abs() * ulp * 1.01 + 1e-7).all())
    expected, expected_scales = quantise_groups(normed)
    assert torch.equal(codes(found.values), codes(expected))
    assert torch.equal(found.scales.cpu(), expected_scales)


def test_a_row_of_zeros_has_a_norm_of_zero(device: torch.device) -> None:
    zeros = torch.zeros(1, 128, device=device)
    found = rms_norm_quantise(zeros, torch.ones(128, device=device), 1e-6)
    assert torch.equal(found.values.cpu().float(), torch.zeros(1, 128))
    assert found.normed is None and found.summed is zeros


def test_no_tokens_give_no_rows(device: torch.device) -> None:
    empty = torch.zeros(0, 256, device=device)
    assert quantise(empty)[1].shape == (0, 2)
    assert swiglu_quantise(empty)[0].shape == (0, 128)
    assert rms_norm_quantise(empty, torch.ones(256, device=device), 1e-6).values.shape == (0, 256)


def test_unsupported_arguments_are_named(device: torch.device) -> None:
    x = torch.zeros(4, 256, device=device)
    with pytest.raises(ValueError, match="x has rows of 200; groups of 128 need a multiple of 128"):
        quantise(x[:, :200])
    with pytest.raises(ValueError, match=r"gate_up has rows of 128; .* a multiple of 256"):
        swiglu_quantise(x[:, :128])
    with pytest.raises(ValueError, match="x is float64; must be bfloat16 or float16 or float32"):
        quantise(x.double())
    with pytest.raises(ValueError, match="used is int64"):
        quantise(x, used=torch.tensor([1], device=device))
    with pytest.raises(ValueError, match="x has strides"):
        quantise(torch.zeros(256, 128, device=device).T[:, :128].T.T)
    with pytest.raises(ValueError, match=r"weight has shape \[128\]; it must be \[256\]"):
        rms_norm_quantise(x, torch.ones(128, device=device), 1e-6)
    with pytest.raises(ValueError, match=r"residual has shape \[3, 256\]"):
        rms_norm_quantise(x, torch.ones(256, device=device), 1e-6, x[:3])
    wide = torch.zeros(1, 16_384 + 128, device=device)
    with pytest.raises(ValueError, match="x has rows of 16512; at most 16384"):
        rms_norm_quantise(wide, torch.ones(16_512, device=device), 1e-6)

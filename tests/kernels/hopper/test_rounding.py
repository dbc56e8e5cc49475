from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.fp8 import AMAX_FLOOR, E4M3_MAX, quantise_groups
from kernels.hopper.rounding import power_of_two_scale, to_bfloat16, to_e4m3


@triton.jit
def e4m3_kernel(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, to_e4m3(tl.load(x + i)))


@triton.jit
def bfloat16_kernel(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, to_bfloat16(tl.load(x + i)))


@triton.jit
def scale_kernel(x, scales, inverses, N: tl.constexpr):
    i = tl.arange(0, N)
    scale, inverse = power_of_two_scale(tl.load(x + i))
    tl.store(scales + i, scale)
    tl.store(inverses + i, inverse)


def padded(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(x, (0, triton.next_power_of_2(x.numel()) - x.numel()))


def test_e4m3_of_every_code_every_tie_and_their_neighbours(device: torch.device) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    grid = codes[codes.isfinite()].unique()
    ties = (grid[1:] + grid[:-1]) / 2
    exact = torch.cat((grid, ties, torch.tensor([-0.0, 1e-30, 2.0**-11])))
    around = [torch.nextafter(exact, torch.tensor(end)) for end in (-torch.inf, torch.inf)]
    x = padded(torch.cat((exact, *around)).clamp(-E4M3_MAX, E4M3_MAX)).to(device)
    out = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=device)
    e4m3_kernel[(1,)](x, out, N=x.numel())
    assert torch.equal(out.view(torch.uint8), x.to(torch.float8_e4m3fn).view(torch.uint8))


def test_bfloat16_of_ties_and_their_neighbours(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    upper = torch.randint(-(2**15), 2**15, (2000,), generator=generator, dtype=torch.int32) << 16
    lower = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
    x = (upper[:, None] | lower).flatten().view(torch.float32)
    x = padded(x[x.abs() < 1e38]).to(device)
    out = torch.empty(x.shape, dtype=torch.bfloat16, device=device)
    bfloat16_kernel[(1,)](x, out, N=x.numel())
    assert torch.equal(out.view(torch.int16), x.bfloat16().view(torch.int16))


def test_scales_are_those_of_quantise_groups(device: torch.device) -> None:
    edges = torch.tensor([448.0 * 2.0**e for e in range(-30, 40)])
    around = [torch.nextafter(edges, torch.tensor(end)) for end in (0.0, torch.inf)]
    other = torch.tensor([0.0, AMAX_FLOOR, 1e-5, 1.0, 57_344.0, 3e38])
    amax = padded(torch.cat((edges, *around, other)))
    found, inverses = (torch.empty_like(amax, device=device) for _ in range(2))
    scale_kernel[(1,)](amax.to(device), found, inverses, N=amax.numel())
    _, expected = quantise_groups(amax[:, None], 1)
    assert torch.equal(found.cpu(), expected[:, 0])
    assert torch.equal(inverses.cpu(), 1 / expected[:, 0])

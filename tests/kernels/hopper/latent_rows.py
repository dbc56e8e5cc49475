"""Latent caches for the attention kernels' tests, and how far their results may be off."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kernels.cache import LatentCache, latent_rows

LATENT, ROPE = 128, 16
SCALE = (LATENT + ROPE) ** -0.55
"""No default has this exponent."""


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def filled_cache(
    used: Tensor, slots: int, kind: Literal["fp8", "bfloat16"], device: torch.device
) -> tuple[Tensor, Tensor]:
    """A cache [slots, row] with random rows at the slots `used` and NaN in all others, and its
    rows as float64 [slots, C + R] on the CPU."""
    cache = LatentCache(
        1,
        slots,
        latent=LATENT,
        rope=ROPE,
        dtype=kind,
        compute_dtype=torch.float32,
        device=torch.device("cpu"),
    )
    cache.rows.view(torch.uint8).fill_(0xFF)  # NaN as e4m3, as bfloat16 and as float32
    # Groups of very different sizes: a scale taken from the wrong group shows.
    sizes = torch.tensor([1.0, 30.0, 0.02, 1.0])[torch.arange(len(used)) % 4][:, None]
    latents = randn(len(used), LATENT, seed=1) * sizes
    cache.write(0, used, latents, randn(len(used), ROPE, seed=2))
    rows = latent_rows(cache.rows[0], torch.arange(slots), LATENT, ROPE, torch.float64)
    return cache.rows[0].to(device), rows


def assert_attention_close(
    found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], dtype: torch.dtype
) -> None:
    """Averages in `dtype` and log-sum-exp against float64.

    The interpreter multiplies exact inputs in float32 and adds in float32: both agree with float64
    to some 1e-6 of the largest row. On a device the weights are rounded to bfloat16 (2^-9), which
    the averages see, the log-sum-exp not. Results in bfloat16 are rounded once more.
    """
    (out, lse), (out_expected, lse_expected) = found, expected
    exact = out.device.type == "cpu"
    largest = float(out_expected.abs().max())
    relative = 2**-8 if dtype == torch.bfloat16 else 0.0
    torch.testing.assert_close(
        out.double().cpu(),
        out_expected,
        atol=largest * (2e-6 if exact else 4e-3),
        rtol=relative + (1e-5 if exact else 2**-7),
    )
    torch.testing.assert_close(lse.double().cpu(), lse_expected, atol=1e-5, rtol=1e-5)

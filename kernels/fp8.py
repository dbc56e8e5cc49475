"""FP8 e4m3 with power-of-two scales: the rounding that weights, latents and index keys share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

E4M3_MAX = 448.0
AMAX_FLOOR = 1e-4
"""Keeps the scale of a zero group positive, so that nothing becomes NaN."""


def quantise_groups(x: Tensor, group: int = 128) -> tuple[Tensor, Tensor]:
    """Returns (e4m3 values [..., D], float32 scales [..., D / group]) with x = value * scale.

    One scale per `group` neighbouring values, 2^ceil(log2(amax / 448)), amax floored at 1e-4.
    Raises ValueError unless the last dimension is a multiple of `group`.
    """
    if x.shape[-1] % group:
        raise ValueError(f"width is {x.shape[-1]}; FP8 groups need a multiple of {group}")
    groups = x.float().unflatten(-1, (-1, group))
    amax = groups.abs().amax(-1, keepdim=True).clamp_min(AMAX_FLOOR)
    mantissa, exponent = torch.frexp(amax / E4M3_MAX)
    # frexp's mantissa lies in [0.5, 1): an exact power of two has 0.5 and needs no rounding up.
    scale = torch.ldexp(torch.ones_like(amax), exponent - (mantissa == 0.5).int())
    values = (groups / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return values.flatten(-2), scale.squeeze(-1)


def dequantise_groups(values: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns values [..., D] e4m3 times their group's scale [..., D / group], in `dtype`."""
    groups = values.float().unflatten(-1, (scales.shape[-1], -1))
    return (groups * scales[..., None]).flatten(-2).to(dtype)


def round_trip(x: Tensor, group: int = 128) -> Tensor:
    """Returns x as an FP8 cache would give it back, in x's dtype."""
    return dequantise_groups(*quantise_groups(x, group), x.dtype)


def quantise_group_reference(x: list[float]) -> tuple[list[float], float]:
    """One group in Python floats: (values on the e4m3 grid, scale)."""
    amax = max(AMAX_FLOOR, *(abs(v) for v in x))
    scale = 2.0 ** math.ceil(math.log2(amax / E4M3_MAX))
    values = []
    for v in x:
        y = max(-E4M3_MAX, min(E4M3_MAX, v / scale))
        exponent = max(-6, math.floor(math.log2(abs(y)))) if y else -6
        step = 2.0 ** (exponent - 3)  # three mantissa bits; below 2^-6 the grid is subnormal
        values.append(round(y / step) * step)  # Python rounds ties to even, as the hardware does
    return values, scale

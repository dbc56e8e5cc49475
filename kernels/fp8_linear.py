"""y = x W^T in FP8: activations scaled by group of 128 channels, weights by block of 128 x 128.

    y_tn = sum over slabs g of 128 channels: s_tg * r_bg * sum_{k in g} x_tk * w_nk,  b = n // 128

Source: DeepSeek-V3 report, §3.3.2 (fine-grained quantisation, sums of one slab promoted to
float32).
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128
"""Channels with one scale, along both sides of a weight; the last block of rows may be ragged."""


def dequantise_weight(weight: Tensor, weight_scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the weight [N, K] times its blocks' scales, in `dtype`.

    weight [N, K] e4m3; weight_scales [ceil(N / 128), ceil(K / 128)] float32, which checkpoints
    call weight_scale_inv although it multiplies.
    """
    wide = weight_scales.to(dtype).repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return weight.to(dtype) * wide[: weight.shape[0], : weight.shape[1]]


def fp8_linear(
    x: Tensor,
    x_scales: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Returns [M, N] in `dtype`, slab sums added in float32.

    x [M, K] e4m3 with x_scales [M, K / 128] float32 as `fp8.quantise_groups` gives them; weight
    and weight_scales as for `dequantise_weight`. Raises ValueError unless K is a multiple of 128.
    """
    if x.shape[1] % BLOCK:
        raise ValueError(f"x has {x.shape[1]} channels; FP8 needs a multiple of {BLOCK}")
    out = torch.zeros(x.shape[0], weight.shape[0], dtype=torch.float32, device=x.device)
    rows = weight_scales.repeat_interleave(BLOCK, 0)[: weight.shape[0]]
    for slab in range(x.shape[1] // BLOCK):
        channels = slice(slab * BLOCK, (slab + 1) * BLOCK)
        product = x[:, channels].float() @ weight[:, channels].float().T
        out += product * (x_scales[:, slab, None] * rows[None, :, slab])
    return out.to(dtype)


def fp8_linear_reference(
    x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor
) -> Tensor:
    """The same in float64, one output at a time."""
    out = torch.zeros(x.shape[0], weight.shape[0], dtype=torch.float64)
    for t in range(x.shape[0]):
        row = x[t].double() * x_scales[t].double().repeat_interleave(BLOCK)
        for n in range(weight.shape[0]):
            scales = weight_scales[n // BLOCK].double().repeat_interleave(BLOCK)
            out[t, n] = torch.dot(row, weight[n].double() * scales)
    return out

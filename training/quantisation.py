"""FP8 e4m3 weights in 128 x 128 blocks with power-of-two scales, as the checkpoint stores them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128
E4M3_MAX = 448.0


def quantise_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(e4m3 [out, in], fp32 scale [ceil(out/128), ceil(in/128)]); weight ~= e4m3 * scale.

    Scales are powers of two, rounded up so that no value leaves the e4m3 range; an all-zero block
    gets the smallest scale instead of zero.
    """
    rows, columns = weight.shape
    row_blocks, column_blocks = -(-rows // BLOCK), -(-columns // BLOCK)
    padded = F.pad(
        weight.float(), (0, column_blocks * BLOCK - columns, 0, row_blocks * BLOCK - rows)
    )
    blocks = padded.view(row_blocks, BLOCK, column_blocks, BLOCK)
    largest = blocks.abs().amax(dim=(1, 3)).clamp_min(1e-12)
    scale = torch.exp2(torch.ceil(torch.log2(largest / E4M3_MAX)))
    quantised = (blocks / scale[:, None, :, None]).clamp(-E4M3_MAX, E4M3_MAX)
    quantised = quantised.view(row_blocks * BLOCK, column_blocks * BLOCK)[:rows, :columns]
    return quantised.contiguous().to(torch.float8_e4m3fn), scale


def dequantise_blocks(quantised: Tensor, scale: Tensor) -> Tensor:
    """fp32 [out, in]: the weight that `quantise_blocks` stored, ragged last blocks included."""
    rows, columns = quantised.shape
    spread = scale.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
    return quantised.float() * spread


def fake_quantise(weight: Tensor) -> Tensor:
    """Weight rounded to its FP8 blocks in the forward pass, identity in the backward pass.

    The leading axis of a stacked weight [experts, out, in] counts matrices with their own blocks.
    """
    with torch.no_grad():
        if weight.dim() == 3:
            rounded = torch.stack([dequantise_blocks(*quantise_blocks(one)) for one in weight])
        else:
            rounded = dequantise_blocks(*quantise_blocks(weight))
    return weight + (rounded - weight).detach()

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Block-scaled FP8 products for sm_90 whose rows' bits depend on the row and the weight alone.

`kernels.hopper.fp8_linear` swaps operands for few tokens and divides the channels by the number of
tiles. Here every row stands in a tile of 128, and the slabs of 128 channels are added in parts
whose number comes from the weight's shape: within a part in ascending order, then the parts. One
program adds all parts of a tile, or, where tiles are fewer than SMs, each part has a program and
another kernel adds them: both give the same sum.

That a row of a wgmma does not depend on its place in the tile is left for a GPU to show.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.fp8_linear import BLOCK
from kernels.hopper.fp8_linear import (
    TILE_OUTPUTS,
    TILE_TOKENS,
    add_parts,
    check_fp8_linear,
    multiprocessors,
    rows_descriptor,
    slab_scales,
    split_count,
)
from kernels.hopper.rounding import to_dtype
from kernels.hopper.specialisation import Budget, Specialisation

PROGRAMS = 132
"""What the parts of one token tile are to occupy: an H200's SMs, on every device, since the number
of parts decides the bits."""
WARPS = 8
STAGES = 4
VARYING = ["tokens", "x_scale_slab_stride", "parts_per_program", "out_part_stride"]


@triton.jit(do_not_specialize=VARYING)
def fixed_order_fp8_linear_kernel(
    x,
    x_scales,
    weight,
    weight_scales,
    out,
    tokens,
    outputs,
    slabs,
    part_slabs,
    parts_per_program,
    x_scale_token_stride,
    x_scale_slab_stride,
    weight_scale_stride,
    out_part_stride,
    out_stride,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    SLAB: tl.constexpr,
):
    """One program per (tile of tokens and outputs, share of the parts)."""
    token_tiles = tl.cdiv(tokens, BLOCK_TOKENS)
    token = (tl.program_id(0) % token_tiles) * BLOCK_TOKENS
    output = (tl.program_id(0) // token_tiles) * BLOCK_OUTPUTS
    rows = token + tl.arange(0, BLOCK_TOKENS)
    inside = rows < tokens
    row_scales = x_scales + rows.to(tl.int64) * x_scale_token_stride
    block_scales = weight_scales + (output // SLAB) * weight_scale_stride
    total = tl.zeros([BLOCK_TOKENS, BLOCK_OUTPUTS], tl.float32)
    first_part = tl.program_id(1) * parts_per_program
    for part in tl.range(first_part, first_part + parts_per_program, flatten=True):
        first = part * part_slabs
        partial = tl.zeros([BLOCK_TOKENS, BLOCK_OUTPUTS], tl.float32)
        row_scale, block_scale = slab_scales(
            row_scales, inside, x_scale_slab_stride, block_scales, first, slabs
        )
        # The last part may run over the end, where descriptors read zeros.
        for step in tl.range(part_slabs):
            slab = first + step
            x_tile = x.load([token, slab * SLAB])
            weight_tile = weight.load([output, slab * SLAB])
            next_row_scale, next_block_scale = slab_scales(
                row_scales, inside, x_scale_slab_stride, block_scales, slab + 1, slabs
            )
            partial += tl.dot(x_tile, weight_tile.T) * (row_scale * block_scale)[:, None]
            row_scale, block_scale = next_row_scale, next_block_scale
        total += partial
    columns = output + tl.arange(0, BLOCK_OUTPUTS)
    tl.store(
        out
        + tl.program_id(1) * out_part_stride.to(tl.int64)
        + rows.to(tl.int64)[:, None] * out_stride
        + columns[None, :],
        to_dtype(total, out.dtype.element_ty),
        mask=inside[:, None] & (columns < outputs)[None, :],
    )


def fixed_order_fp8_linear(
    x: Tensor,
    x_scales: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Returns what `fp8_linear` of the same arguments returns, up to the order of additions.

    A row's bits depend on that row and the weight alone. Raises ValueError as `fp8_linear` does.
    """
    tokens, width, outputs = check_fp8_linear(x, x_scales, weight, weight_scales, dtype)
    if tokens == 0:
        return x.new_empty(0, outputs, dtype=dtype)
    slabs = width // BLOCK
    part_slabs = slabs_per_part(outputs, slabs)
    parts = triton.cdiv(slabs, part_slabs)
    tiles = triton.cdiv(tokens, TILE_TOKENS) * triton.cdiv(outputs, TILE_OUTPUTS)
    spread = parts > 1 and tiles < multiprocessors(x.device)
    out = torch.empty(tokens, outputs, dtype=dtype, device=x.device)
    sums = out[None]
    if spread:
        sums = torch.empty(parts, tokens, outputs, dtype=torch.float32, device=x.device)
    fixed_order_fp8_linear_kernel[(tiles, sums.shape[0])](
        rows_descriptor(x, TILE_TOKENS),
        x_scales,
        rows_descriptor(weight, TILE_OUTPUTS),
        weight_scales,
        sums,
        tokens,
        outputs,
        slabs,
        part_slabs,
        1 if spread else parts,
        *x_scales.stride(),
        weight_scales.stride(0),
        sums.stride(0),
        sums.stride(1),
        BLOCK_TOKENS=TILE_TOKENS,
        BLOCK_OUTPUTS=TILE_OUTPUTS,
        SLAB=BLOCK,
        num_warps=WARPS,
        num_stages=STAGES,
    )
    if spread:
        add_parts(sums, out)
    return out


def slabs_per_part(outputs: int, slabs: int) -> int:
    """Returns of how many slabs a part of a weight's sums consists."""
    return triton.cdiv(slabs, split_count(triton.cdiv(outputs, TILE_OUTPUTS), slabs, PROGRAMS))


def _specialisation(out: str) -> Specialisation:
    scalars = ("tokens", "outputs", "slabs", "part_slabs", "parts_per_program")
    strides = ("x_scale_slab_stride", "weight_scale_stride", "out_part_stride", "out_stride")
    return Specialisation(
        name=f"{TILE_TOKENS} tokens x {TILE_OUTPUTS} outputs, {out.strip('*')} out",
        kernel=fixed_order_fp8_linear_kernel,
        signature={
            "x": f"tensordesc<fp8e4nv[{TILE_TOKENS}, {BLOCK}]>",
            "x_scales": "*fp32",
            "weight": f"tensordesc<fp8e4nv[{TILE_OUTPUTS}, {BLOCK}]>",
            "weight_scales": "*fp32",
            "out": out,
            **dict.fromkeys((*scalars, *strides), "i32"),
        },
        constants={
            "x_scale_token_stride": 1,
            "BLOCK_TOKENS": TILE_TOKENS,
            "BLOCK_OUTPUTS": TILE_OUTPUTS,
            "SLAB": BLOCK,
        },
        aligned=("x_scales", "weight_scales", "out", "out_stride"),
        warps=WARPS,
        stages=STAGES,
        budget=Budget(255, 200_000, 1, "QGMMA"),
    )


SPECIALISATIONS = (_specialisation("*bf16"), _specialisation("*fp32"))

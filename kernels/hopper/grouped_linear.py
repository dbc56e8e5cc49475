# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The experts' FP8 products over pairs sorted by expert, for sm_90.

Two forms as in `fp8_linear`, by the order's tile: 128 rows to a tile for many tokens (persistent
programs), and 16 to 64 rows for few, with the operands swapped: then the experts' weights are what
is read, and the tokens only the columns of a wgmma. The first product gathers the tokens' rows
while it runs, so no permuted copy of x is made; the second reads sorted rows.

Source: DeepSeek-V3 report, §3.3.2 (FP8 products).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.fp8_linear import BLOCK
from kernels.hopper.arguments import check_choice, check_tensor
from kernels.hopper.fp8_linear import (
    OUT_DTYPES,
    TILE_OUTPUTS,
    check_copies,
    multiprocessors,
    rows_descriptor,
    slab_scales,
)
from kernels.hopper.rounding import to_dtype
from kernels.hopper.routing import SortedPairs
from kernels.hopper.specialisation import Budget, Specialisation

MANY_TOKENS = 128
FEW_TOKENS = (16, 32, 64)
SWAPPED_OUTPUTS = 64
_SWAPPED_STAGES = {16: 6, 32: 6, 64: 4}


@triton.jit(do_not_specialize=["x_scale_slab_stride"])
def grouped_linear_kernel(
    x,
    x_scales,
    weights,
    weight_scales,
    out,
    pairs,
    tile_experts,
    used_tiles,
    outputs,
    slabs,
    x_stride,
    x_scale_token_stride,
    x_scale_slab_stride,
    weight_scale_expert_stride,
    weight_scale_stride,
    out_stride,
    TOP_K: tl.constexpr,
    GATHER: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    SLAB: tl.constexpr,
):
    """Persistent over the tiles in use; GATHER: x is a pointer to tokens, else a descriptor."""
    output_tiles = tl.cdiv(outputs, BLOCK_OUTPUTS)
    work_count = tl.load(used_tiles) * output_tiles
    for work in tl.range(tl.program_id(0), work_count, tl.num_programs(0), flatten=True):
        tile = work // output_tiles
        output = (work % output_tiles) * BLOCK_OUTPUTS
        expert = tl.load(tile_experts + tile)
        rows = tile * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
        columns = tl.arange(0, SLAB)
        inside = rows >= 0
        source = rows
        if GATHER:
            pair = tl.load(pairs + rows)
            inside = pair >= 0
            source = tl.maximum(pair, 0) // TOP_K
            x_rows = x + source.to(tl.int64)[:, None] * x_stride + columns[None, :]
        row_scales = x_scales + source.to(tl.int64) * x_scale_token_stride
        block_scales = weight_scales + expert.to(tl.int64) * weight_scale_expert_stride
        block_scales += (output // SLAB) * weight_scale_stride
        total = tl.zeros([BLOCK_TOKENS, BLOCK_OUTPUTS], tl.float32)
        row_scale, block_scale = slab_scales(
            row_scales, inside, x_scale_slab_stride, block_scales, 0, slabs
        )
        for slab in tl.range(slabs):
            if GATHER:
                x_tile = tl.load(x_rows + slab * SLAB, mask=inside[:, None], other=0.0)
            else:
                x_tile = x.load([tile * BLOCK_TOKENS, slab * SLAB])
            # Behind an expert's last output the next one's begin: those columns are not stored.
            weight_tile = weights.load([expert * outputs + output, slab * SLAB])
            next_row_scale, next_block_scale = slab_scales(
                row_scales, inside, x_scale_slab_stride, block_scales, slab + 1, slabs
            )
            total += tl.dot(x_tile, weight_tile.T) * (row_scale * block_scale)[:, None]
            row_scale, block_scale = next_row_scale, next_block_scale
        outs = output + tl.arange(0, BLOCK_OUTPUTS)
        tl.store(
            out + rows.to(tl.int64)[:, None] * out_stride + outs[None, :],
            to_dtype(total, out.dtype.element_ty),
            mask=(outs < outputs)[None, :],
        )


@triton.jit(do_not_specialize=["x_scale_slab_stride"])
def grouped_linear_swapped_kernel(
    x,
    x_scales,
    weights,
    weight_scales,
    out,
    pairs,
    tile_experts,
    used_tiles,
    outputs,
    slabs,
    x_stride,
    x_scale_token_stride,
    x_scale_slab_stride,
    weight_scale_expert_stride,
    weight_scale_stride,
    out_stride,
    TOP_K: tl.constexpr,
    GATHER: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    SLAB: tl.constexpr,
):
    """One program per (tile of outputs, tile of pairs); those beyond the tiles in use leave."""
    tile = tl.program_id(1)
    if tile < tl.load(used_tiles):
        output = tl.program_id(0) * BLOCK_OUTPUTS
        expert = tl.load(tile_experts + tile)
        rows = tile * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
        inside = rows >= 0
        source = rows
        if GATHER:
            pair = tl.load(pairs + rows)
            inside = pair >= 0
            source = tl.maximum(pair, 0) // TOP_K
        x_rows = x + source.to(tl.int64)[:, None] * x_stride + tl.arange(0, SLAB)[None, :]
        column_scales = x_scales + source.to(tl.int64) * x_scale_token_stride
        block_scales = weight_scales + expert.to(tl.int64) * weight_scale_expert_stride
        block_scales += (output // SLAB) * weight_scale_stride
        total = tl.zeros([BLOCK_OUTPUTS, BLOCK_TOKENS], tl.float32)
        column_scale, block_scale = slab_scales(
            column_scales, inside, x_scale_slab_stride, block_scales, 0, slabs
        )
        for slab in tl.range(slabs):
            weight_tile = weights.load([expert * outputs + output, slab * SLAB])
            x_tile = tl.load(x_rows + slab * SLAB, mask=inside[:, None], other=0.0)
            next_column_scale, next_block_scale = slab_scales(
                column_scales, inside, x_scale_slab_stride, block_scales, slab + 1, slabs
            )
            total += tl.dot(weight_tile, x_tile.T) * (column_scale * block_scale)[None, :]
            column_scale, block_scale = next_column_scale, next_block_scale
        outs = output + tl.arange(0, BLOCK_OUTPUTS)
        tl.store(
            out + rows.to(tl.int64)[None, :] * out_stride + outs[:, None],
            to_dtype(total, out.dtype.element_ty),
            mask=(outs < outputs)[:, None],
        )


def grouped_linear(
    x: Tensor,
    x_scales: Tensor,
    weights: Tensor,
    weight_scales: Tensor,
    order: SortedPairs,
    dtype: torch.dtype = torch.bfloat16,
    *,
    gather: bool,
) -> Tensor:
    """Returns x_row W_e^T [R, N] for the R sorted rows, e being the expert of the row's tile.

    gather: x [T, K] e4m3 holds tokens, and a row is its pair's; rows of pair -1 give 0. Otherwise
    x [R, K] holds sorted rows. x_scales [T or R, K / 128] float32, any strides; weights [E, N, K]
    e4m3, contiguous; weight_scales [E, ceil(N / 128), K / 128] float32; order from
    `sort_by_expert` with tiles of 16, 32, 64 or 128. Rows of tiles that are not used are left
    undefined. Raises ValueError for other arguments.
    """
    check_choice("order.tile_tokens", order.tile_tokens, (*FEW_TOKENS, MANY_TOKENS))
    _check(x, x_scales, weights, weight_scales, order, dtype, gather)
    expert_count, outputs, width = weights.shape
    max_tiles, tile_tokens = order.tile_experts.numel(), order.tile_tokens
    out = torch.empty(order.pairs.numel(), outputs, dtype=dtype, device=x.device)
    if max_tiles == 0:
        return out
    swapped = tile_tokens != MANY_TOKENS
    tile_outputs = SWAPPED_OUTPUTS if swapped else TILE_OUTPUTS
    output_tiles = triton.cdiv(outputs, tile_outputs)
    operands = (
        x if gather or swapped else rows_descriptor(x, tile_tokens),
        x_scales,
        rows_descriptor(weights.view(expert_count * outputs, width), tile_outputs),
        weight_scales,
        out,
        order.pairs,
        order.tile_experts,
        order.used_tiles,
        outputs,
        width // BLOCK,
        x.stride(0),
        *x_scales.stride(),
        weight_scales.stride(0),
        weight_scales.stride(1),
        out.stride(0),
    )
    constants = {
        "TOP_K": order.top_k,
        "GATHER": gather,
        "BLOCK_TOKENS": tile_tokens,
        "BLOCK_OUTPUTS": tile_outputs,
        "SLAB": BLOCK,
    }
    if swapped:
        grouped_linear_swapped_kernel[(output_tiles, max_tiles)](
            *operands, **constants, num_warps=4, num_stages=_SWAPPED_STAGES[tile_tokens]
        )
    else:
        programs = min(multiprocessors(x.device), max_tiles * output_tiles)
        grouped_linear_kernel[(programs,)](*operands, **constants, num_warps=8, num_stages=4)
    return out


def _check(
    x: Tensor,
    x_scales: Tensor,
    weights: Tensor,
    weight_scales: Tensor,
    order: SortedPairs,
    dtype: torch.dtype,
    gather: bool,
) -> None:
    fp8, fp32 = (torch.float8_e4m3fn,), (torch.float32,)
    rows = order.rows.shape[0] if gather else order.pairs.numel()
    check_tensor("x", x, (rows, None), fp8)
    width = x.shape[1]
    if width % BLOCK or not width:
        raise ValueError(f"x has {width} channels; FP8 needs a positive multiple of {BLOCK}")
    check_tensor("weights", weights, (None, None, width), fp8, like=x)
    expert_count, outputs, _ = weights.shape
    if not weights.is_contiguous() or not weights.numel():
        raise ValueError(
            f"weights has shape {list(weights.shape)} and strides {weights.stride()}; "
            "it must be contiguous and not empty"
        )
    slabs, blocks = width // BLOCK, -(-outputs // BLOCK)
    check_tensor("x_scales", x_scales, (rows, slabs), fp32, like=x, unit_stride=False)
    check_tensor("weight_scales", weight_scales, (expert_count, blocks, slabs), fp32, like=x)
    check_tensor("order.pairs", order.pairs, (None,), (torch.int32,), like=x)
    check_out(dtype)
    if rows:
        check_copies("x", x)
    check_copies("weights", weights)


def check_out(dtype: torch.dtype) -> None:
    """Raises ValueError unless products can be written in this dtype."""
    if dtype not in OUT_DTYPES:
        raise ValueError(f"dtype is {dtype}; allowed are {', '.join(map(str, OUT_DTYPES))}")


def _specialisation(tile_tokens: int, gather: bool, budget: Budget) -> Specialisation:
    swapped = tile_tokens != MANY_TOKENS
    tile_outputs = SWAPPED_OUTPUTS if swapped else TILE_OUTPUTS
    pointer = gather or swapped
    x = "*fp8e4nv" if pointer else f"tensordesc<fp8e4nv[{tile_tokens}, {BLOCK}]>"
    return Specialisation(
        name=f"tiles of {tile_tokens} {'gathered tokens' if gather else 'sorted rows'}",
        kernel=grouped_linear_swapped_kernel if swapped else grouped_linear_kernel,
        signature={
            "x": x,
            "x_scales": "*fp32",
            "weights": f"tensordesc<fp8e4nv[{tile_outputs}, {BLOCK}]>",
            "weight_scales": "*fp32",
            "out": "*bf16",
            "pairs": "*i32",
            "tile_experts": "*i32",
            "used_tiles": "*i32",
            "outputs": "i32",
            "slabs": "i32",
            "x_stride": "i32",
            "x_scale_slab_stride": "i32",
            "weight_scale_expert_stride": "i32",
            "weight_scale_stride": "i32",
            "out_stride": "i32",
        },
        constants={
            "x_scale_token_stride": 1,
            "TOP_K": 8,
            "GATHER": gather,
            "BLOCK_TOKENS": tile_tokens,
            "BLOCK_OUTPUTS": tile_outputs,
            "SLAB": BLOCK,
        },
        aligned=(
            *(("x",) if pointer else ()),
            *("x_scales", "weight_scales", "out", "pairs", "tile_experts", "used_tiles"),
            *("outputs", "x_stride", "out_stride"),
        ),
        warps=4 if swapped else 8,
        stages=_SWAPPED_STAGES[tile_tokens] if swapped else 4,
        budget=budget,
    )


SPECIALISATIONS: tuple[Specialisation, ...] = (
    _specialisation(MANY_TOKENS, True, Budget(232, 170_000, 1, "QGMMA")),
    _specialisation(MANY_TOKENS, False, Budget(216, 170_000, 1, "QGMMA")),
    _specialisation(16, True, Budget(96, 76_000, 3, "QGMMA")),
    _specialisation(16, False, Budget(96, 76_000, 3, "QGMMA")),
    _specialisation(32, True, Budget(112, 76_000, 3, "QGMMA")),
    _specialisation(64, True, Budget(192, 76_000, 2, "QGMMA")),
    _specialisation(64, False, Budget(168, 76_000, 3, "QGMMA")),
)

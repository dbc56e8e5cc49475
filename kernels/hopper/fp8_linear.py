# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Block-scaled FP8 products for sm_90: many tokens, and few tokens with the operands swapped.

The FP8 wgmma adds with about 14 bits, so no chain of it runs over more than one slab of 128
channels: each slab's sum starts from zero, is scaled, and is added in float32 registers.

A wgmma has at least 64 rows. With few tokens the weight's outputs take the rows and the tokens the
columns, 16 at least, so that nothing is converted and little is wasted. When tiles are fewer than
SMs, the slabs are split over more programs, whose float32 parts another kernel adds in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.fp8_linear import BLOCK
from kernels.hopper.arguments import check_tensor
from kernels.hopper.rounding import to_dtype
from kernels.hopper.specialisation import Budget, Specialisation

OUT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FEW_TOKENS = 64
"""Up to here the swapped form is used: beyond, its tiles read the weights more than once."""
SWAPPED_OUTPUTS = 64
TILE_TOKENS = TILE_OUTPUTS = 128
SLABS_PER_PROGRAM = 4
"""Fewest slabs worth a program of their own, and its part of the sum."""
SWAPPED_PROGRAMS_PER_SM = 3
_SWAPPED_STAGES = {16: 6, 32: 6, 64: 4}
VARYING = ["tokens", "slabs_per_split", "x_scale_slab_stride", "splits"]
"""What differs from step to step: no variant is compiled for values of 1 or multiples of 16."""


@triton.jit
def slab_scales(token_scales, inside, slab_stride, block_scales, slab, slabs):
    """The scales of a slab: of the tile's tokens, 0 outside, and of its block of the weight.

    Kernels request them one slab ahead, since the pipeliner only hoists what a product reads.
    Behind the last slab, where products are 0 or not formed, they are the last one's.
    """
    slab = tl.minimum(slab, slabs - 1)
    token_scale = tl.load(token_scales + slab * slab_stride, mask=inside, other=0.0)
    return token_scale, tl.load(block_scales + slab)


@triton.jit(do_not_specialize=VARYING)
def fp8_linear_kernel(
    x,
    x_scales,
    weight,
    weight_scales,
    out,
    tokens,
    outputs,
    slabs,
    slabs_per_split,
    splits,
    x_scale_token_stride,
    x_scale_slab_stride,
    weight_scale_stride,
    out_split_stride,
    out_stride,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    TOKEN_TILES_TOGETHER: tl.constexpr,
    SLAB: tl.constexpr,
):
    """Persistent: each program walks over tiles [BLOCK_TOKENS, BLOCK_OUTPUTS] of the output."""
    token_tiles = tl.cdiv(tokens, BLOCK_TOKENS)
    output_tiles = tl.cdiv(outputs, BLOCK_OUTPUTS)
    tiles = token_tiles * output_tiles
    for work in tl.range(tl.program_id(0), tiles * splits, tl.num_programs(0), flatten=True):
        split = work // tiles
        tile = work % tiles
        # Tiles that run at once share rows of x and of the weight: walk in bands of token tiles.
        band = tile // (TOKEN_TILES_TOGETHER * output_tiles)
        in_band = tile % (TOKEN_TILES_TOGETHER * output_tiles)
        band_tiles = tl.minimum(token_tiles - band * TOKEN_TILES_TOGETHER, TOKEN_TILES_TOGETHER)
        token = (band * TOKEN_TILES_TOGETHER + in_band % band_tiles) * BLOCK_TOKENS
        output = (in_band // band_tiles) * BLOCK_OUTPUTS
        rows = token + tl.arange(0, BLOCK_TOKENS)
        row_scales = x_scales + rows.to(tl.int64) * x_scale_token_stride
        block_scales = weight_scales + (output // SLAB) * weight_scale_stride
        first = split * slabs_per_split
        inside = rows < tokens
        total = tl.zeros([BLOCK_TOKENS, BLOCK_OUTPUTS], tl.float32)
        row_scale, block_scale = slab_scales(
            row_scales, inside, x_scale_slab_stride, block_scales, first, slabs
        )
        # The last split may run over the end, where descriptors read zeros.
        for step in tl.range(slabs_per_split):
            slab = first + step
            x_tile = x.load([token, slab * SLAB])
            weight_tile = weight.load([output, slab * SLAB])
            next_row_scale, next_block_scale = slab_scales(
                row_scales, inside, x_scale_slab_stride, block_scales, slab + 1, slabs
            )
            total += tl.dot(x_tile, weight_tile.T) * (row_scale * block_scale)[:, None]
            row_scale, block_scale = next_row_scale, next_block_scale
        columns = output + tl.arange(0, BLOCK_OUTPUTS)
        tl.store(
            out
            + split * out_split_stride
            + rows.to(tl.int64)[:, None] * out_stride
            + columns[None, :],
            to_dtype(total, out.dtype.element_ty),
            mask=inside[:, None] & (columns < outputs)[None, :],
        )


@triton.jit(do_not_specialize=VARYING[:-1])
def fp8_linear_swapped_kernel(
    x,
    x_scales,
    weight,
    weight_scales,
    out,
    tokens,
    outputs,
    slabs,
    slabs_per_split,
    x_scale_token_stride,
    x_scale_slab_stride,
    weight_scale_stride,
    out_split_stride,
    out_stride,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    SLAB: tl.constexpr,
):
    """One program per (tile of outputs, split); BLOCK_TOKENS covers all tokens."""
    output = tl.program_id(0) * BLOCK_OUTPUTS
    split = tl.program_id(1)
    columns = tl.arange(0, BLOCK_TOKENS)
    inside = columns < tokens
    column_scales = x_scales + columns.to(tl.int64) * x_scale_token_stride
    block_scales = weight_scales + (output // SLAB) * weight_scale_stride
    first = split * slabs_per_split
    total = tl.zeros([BLOCK_OUTPUTS, BLOCK_TOKENS], tl.float32)
    column_scale, block_scale = slab_scales(
        column_scales, inside, x_scale_slab_stride, block_scales, first, slabs
    )
    for slab in tl.range(first, first + slabs_per_split):
        weight_tile = weight.load([output, slab * SLAB])
        x_tile = x.load([0, slab * SLAB])
        next_column_scale, next_block_scale = slab_scales(
            column_scales, inside, x_scale_slab_stride, block_scales, slab + 1, slabs
        )
        total += tl.dot(weight_tile, x_tile.T) * (column_scale * block_scale)[None, :]
        column_scale, block_scale = next_column_scale, next_block_scale
    rows = output + tl.arange(0, BLOCK_OUTPUTS)
    tl.store(
        out + split * out_split_stride + columns.to(tl.int64)[None, :] * out_stride + rows[:, None],
        to_dtype(total, out.dtype.element_ty),
        mask=inside[None, :] & (rows < outputs)[:, None],
    )


@triton.jit(do_not_specialize=["splits"])
def sum_splits_kernel(parts, out, values, splits, BLOCK_VALUES: tl.constexpr):
    """out [values] = sum of parts [splits, values], first split first."""
    at = tl.program_id(0).to(tl.int64) * BLOCK_VALUES + tl.arange(0, BLOCK_VALUES)
    inside = at < values
    total = tl.zeros([BLOCK_VALUES], tl.float32)
    for split in tl.range(splits):
        total += tl.load(parts + split * values + at, mask=inside, other=0.0)
    tl.store(out + at, to_dtype(total, out.dtype.element_ty), mask=inside)


def fp8_linear(
    x: Tensor,
    x_scales: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Returns x W^T [M, N] in `dtype` (bfloat16, float16 or float32).

    x [M, K] e4m3, rows contiguous; x_scales [M, K / 128] float32 with any strides, quickest when
    the tokens are contiguous, as `quantise` writes them; weight [N, K] e4m3 and weight_scales
    [ceil(N / 128), K / 128] float32, rows contiguous. K and row strides in bytes are multiples of
    128 and 16.

    The form and the number of splits depend on M: for rows whose bits do not, there is
    `kernels.hopper.fixed_order_fp8_linear`.

    Raises ValueError for shapes, dtypes, strides or devices other than these.
    """
    tokens, width, outputs = check_fp8_linear(x, x_scales, weight, weight_scales, dtype)
    slabs = width // BLOCK
    if tokens == 0:
        return x.new_empty(0, outputs, dtype=dtype)
    swapped = tokens <= FEW_TOKENS
    sms = multiprocessors(x.device)
    if swapped:
        tile_tokens = max(16, triton.next_power_of_2(tokens))
        tile_outputs = SWAPPED_OUTPUTS
        tiles = triton.cdiv(outputs, tile_outputs)
        splits = split_count(tiles, slabs, SWAPPED_PROGRAMS_PER_SM * sms)
    else:
        tile_tokens, tile_outputs = TILE_TOKENS, TILE_OUTPUTS
        tiles = triton.cdiv(tokens, tile_tokens) * triton.cdiv(outputs, tile_outputs)
        splits = split_count(tiles, slabs, sms)
    slabs_per_split = triton.cdiv(slabs, splits)
    splits = triton.cdiv(slabs, slabs_per_split)
    out = torch.empty(tokens, outputs, dtype=dtype, device=x.device)
    parts = out[None]
    if splits > 1:
        parts = torch.empty(splits, tokens, outputs, dtype=torch.float32, device=x.device)
    operands = (
        rows_descriptor(x, tile_tokens),
        x_scales,
        rows_descriptor(weight, tile_outputs),
        weight_scales,
        parts,
        tokens,
        outputs,
        slabs,
        slabs_per_split,
    )
    strides = (*x_scales.stride(), weight_scales.stride(0), parts.stride(0), parts.stride(1))
    if swapped:
        fp8_linear_swapped_kernel[(tiles, splits)](
            *operands,
            *strides,
            BLOCK_TOKENS=tile_tokens,
            BLOCK_OUTPUTS=tile_outputs,
            SLAB=BLOCK,
            num_warps=4,
            num_stages=_SWAPPED_STAGES[tile_tokens],
        )
    else:
        fp8_linear_kernel[(min(sms, tiles * splits),)](
            *operands,
            splits,
            *strides,
            BLOCK_TOKENS=tile_tokens,
            BLOCK_OUTPUTS=tile_outputs,
            TOKEN_TILES_TOGETHER=8,
            SLAB=BLOCK,
            num_warps=8,
            num_stages=4,
        )
    if splits > 1:
        add_parts(parts, out)
    return out


def add_parts(sums: Tensor, out: Tensor) -> None:
    """Writes the sums [P, *shape] float32 of the parts, added in order, into out [*shape]."""
    values = out.numel()
    sum_splits_kernel[(triton.cdiv(values, 1024),)](
        sums, out, values, sums.shape[0], BLOCK_VALUES=1024, num_warps=4
    )


def split_count(tiles: int, slabs: int, programs: int) -> int:
    """Returns in how many parts to sum the slabs so that at most `programs` run at once."""
    return max(1, min(programs // tiles, slabs // SLABS_PER_PROGRAM))


def multiprocessors(device: torch.device) -> int:
    """Returns the device's SMs; in the interpreter 2, so that persistent programs loop."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


def rows_descriptor(matrix: Tensor, tile_rows: int, tile_columns: int = BLOCK) -> TensorDescriptor:
    """Returns a descriptor that copies tiles of a matrix [rows, columns], zeros outside it."""
    return TensorDescriptor(
        matrix, list(matrix.shape), list(matrix.stride()), [tile_rows, tile_columns]
    )


def check_copies(name: str, matrix: Tensor) -> None:
    """Raises ValueError unless the copy engine can read the rows of [..., rows, columns]."""
    row_bytes = matrix.stride(-2) * matrix.element_size()
    if row_bytes % 16:
        raise ValueError(f"{name} has a row stride of {row_bytes} bytes; needs a multiple of 16")
    if matrix.data_ptr() % 16:
        raise ValueError(f"{name} begins at address {matrix.data_ptr()}; needs a multiple of 16")


def check_fp8_linear(
    x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, dtype: torch.dtype
) -> tuple[int, int, int]:
    """Returns (M, K, N); raises ValueError for what the FP8 products do not support."""
    fp8, fp32 = (torch.float8_e4m3fn,), (torch.float32,)
    check_tensor("x", x, (None, None), fp8)
    tokens, width = x.shape
    if width % BLOCK or not width:
        raise ValueError(f"x has {width} channels; FP8 needs a positive multiple of {BLOCK}")
    check_tensor("weight", weight, (None, width), fp8, like=x)
    outputs = weight.shape[0]
    if not outputs:
        raise ValueError("weight has 0 outputs; at least 1 is needed")
    slabs = width // BLOCK
    check_tensor("x_scales", x_scales, (tokens, slabs), fp32, like=x, unit_stride=False)
    blocks = -(-outputs // BLOCK)
    check_tensor("weight_scales", weight_scales, (blocks, slabs), fp32, like=x)
    if dtype not in OUT_DTYPES:
        raise ValueError(f"dtype is {dtype}; allowed are {', '.join(map(str, OUT_DTYPES))}")
    if tokens:
        check_copies("x", x)
    check_copies("weight", weight)
    return tokens, width, outputs


_SCALARS = {
    "tokens": "i32",
    "outputs": "i32",
    "slabs": "i32",
    "slabs_per_split": "i32",
    "x_scale_slab_stride": "i32",
    "weight_scale_stride": "i32",
    "out_split_stride": "i32",
    "out_stride": "i32",
}


def _operands(tile_tokens: int, tile_outputs: int, out: str) -> dict[str, str]:
    return {
        "x": f"tensordesc<fp8e4nv[{tile_tokens}, {BLOCK}]>",
        "x_scales": "*fp32",
        "weight": f"tensordesc<fp8e4nv[{tile_outputs}, {BLOCK}]>",
        "weight_scales": "*fp32",
        "out": out,
    }


def _swapped(tile_tokens: int, out: str, registers: int, shared_bytes: int) -> Specialisation:
    return Specialisation(
        name=f"few tokens: {SWAPPED_OUTPUTS} outputs x {tile_tokens} tokens, {out.strip('*')} out",
        kernel=fp8_linear_swapped_kernel,
        signature=_operands(tile_tokens, SWAPPED_OUTPUTS, out) | _SCALARS,
        constants={
            "BLOCK_TOKENS": tile_tokens,
            "BLOCK_OUTPUTS": SWAPPED_OUTPUTS,
            "SLAB": BLOCK,
            "x_scale_token_stride": 1,
        },
        aligned=("x_scales", "weight_scales", "out", "out_stride"),
        warps=4,
        stages=_SWAPPED_STAGES[tile_tokens],
        budget=Budget(registers, shared_bytes, SWAPPED_PROGRAMS_PER_SM, "QGMMA"),
    )


def _many(out: str) -> Specialisation:
    return Specialisation(
        name=f"many tokens: {TILE_TOKENS} tokens x {TILE_OUTPUTS} outputs, {out.strip('*')} out",
        kernel=fp8_linear_kernel,
        signature=_operands(TILE_TOKENS, TILE_OUTPUTS, out) | _SCALARS | {"splits": "i32"},
        constants={
            "BLOCK_TOKENS": TILE_TOKENS,
            "BLOCK_OUTPUTS": TILE_OUTPUTS,
            "TOKEN_TILES_TOGETHER": 8,
            "SLAB": BLOCK,
            "x_scale_token_stride": 1,
        },
        aligned=("x_scales", "weight_scales", "out", "out_stride"),
        warps=8,
        stages=4,
        budget=Budget(200, 200_000, 1, "QGMMA"),
    )


def _sum(out: str) -> Specialisation:
    return Specialisation(
        name=f"sum of splits, {out.strip('*')} out",
        kernel=sum_splits_kernel,
        signature={"parts": "*fp32", "out": out, "values": "i64", "splits": "i32"},
        constants={"BLOCK_VALUES": 1024},
        aligned=("parts", "out", "values"),
        warps=4,
        stages=3,
        budget=Budget(64, 0, 8, None),
    )


SPECIALISATIONS: tuple[Specialisation, ...] = (
    _many("*bf16"),
    _many("*fp32"),
    _swapped(16, "*bf16", 80, 72_000),
    _swapped(16, "*fp32", 80, 72_000),
    _swapped(32, "*fp32", 100, 76_000),
    _swapped(64, "*fp32", 160, 76_000),
    _sum("*bf16"),
    _sum("*fp32"),
)

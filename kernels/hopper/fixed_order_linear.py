# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Products of bfloat16 rows whose bits depend on the row and the weight alone, for sm_90.

A matrix library picks its tiles and its way of adding by the number of rows. Here every row stands
in a tile of 64, channels are added in ascending order, and where outputs are too few to occupy the
machine the channels are divided into parts of a fixed length, which are added in order: all of it
is decided by the weight's shape.

A float32 weight is the exact sum of up to three bfloat16 pieces, which are multiplied one by one:
products of bfloat16 are exact in float32, and only their sum is rounded.

The interpreter multiplies no bfloat16: there the factors are float32 copies. That a row of a wgmma
does not depend on its place in the tile is left for a GPU to show.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.hopper.arguments import check_tensor
from kernels.hopper.fp8_linear import OUT_DTYPES, add_parts
from kernels.hopper.rounding import NATIVE, to_dtype
from kernels.hopper.specialisation import Budget, Specialisation

BLOCK_TOKENS = 64
BLOCK_OUTPUTS = 128
BLOCK_CHANNELS = 64
LEAST_CHANNELS = 16
"""Of a product's inner dimension."""
PART_CHANNELS = 1024
FEW_TILES = 64
"""Of outputs, all groups together: with fewer the channels are divided into parts."""
PIECES = 3
"""A float32 mantissa has 24 bits, a bfloat16's 8."""
WARPS = 4
STAGES = 3
VARYING = ["tokens", "out_part_stride"]


@triton.jit(do_not_specialize=VARYING)
def fixed_order_linear_kernel(
    x,
    weights,
    out,
    tokens,
    outputs,
    channels,
    part_channels,
    x_stride,
    x_group_stride,
    piece_stride,
    group_stride,
    output_stride,
    channel_stride,
    out_part_stride,
    out_stride,
    out_group_stride,
    PIECES: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program per (tile of tokens and outputs, group, part of the channels)."""
    # Tiles that run at once share outputs, whose weights are the larger operand.
    token_tiles = tl.cdiv(tokens, BLOCK_T)
    token = (tl.program_id(0) % token_tiles) * BLOCK_T + tl.arange(0, BLOCK_T)
    output = (tl.program_id(0) // token_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    group, part = tl.program_id(1).to(tl.int64), tl.program_id(2)
    channel = tl.arange(0, BLOCK_K)
    x_rows = x + token.to(tl.int64)[:, None] * x_stride + group * x_group_stride
    weight_rows = weights + output.to(tl.int64)[None, :] * output_stride + group * group_stride
    total = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    begin = part * part_channels
    end = tl.minimum(begin + part_channels, channels)
    for first in tl.range(begin, end, BLOCK_K):
        at = first + channel
        x_tile = tl.load(
            x_rows + at[None, :], mask=(token < tokens)[:, None] & (at < end)[None, :], other=0.0
        )
        for piece in tl.static_range(PIECES):
            weight_tile = tl.load(
                weight_rows
                + piece * tl.cast(piece_stride, tl.int64)
                + at[:, None] * channel_stride,
                mask=(output < outputs)[None, :] & (at < end)[:, None],
                other=0.0,
            )
            if NATIVE:
                total = tl.dot(x_tile, weight_tile, total)
            else:
                total = tl.dot(
                    x_tile.to(tl.float32),
                    weight_tile.to(tl.float32),
                    total,
                    input_precision="ieee",
                )
    tl.store(
        out
        + part * out_part_stride.to(tl.int64)
        + token.to(tl.int64)[:, None] * out_stride
        + group * out_group_stride
        + output[None, :],
        to_dtype(total, out.dtype.element_ty),
        mask=(token < tokens)[:, None] & (output < outputs)[None, :],
    )


def fixed_order_linear(
    x: Tensor,
    weights: Tensor,
    dtype: torch.dtype = torch.float32,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Returns x_g W_g^T [T, G, N] in `dtype`, every row's bits depending on that row alone.

    x [T, G, K] bfloat16, channels contiguous; weights [P, G, N, K] bfloat16, at any strides: the
    pieces whose sum a weight is. dtype bfloat16, float16 or float32; out [T, G, N]: where the
    result goes, outputs contiguous, which takes weights of one part (`part_count`).
    Raises ValueError for other arguments.
    """
    check_tensor("x", x, (None, None, None), (torch.bfloat16,))
    tokens, groups, channels = x.shape
    check_tensor(
        "weights", weights, (None, groups, None, channels), (x.dtype,), like=x, unit_stride=False
    )
    pieces, _, outputs, _ = weights.shape
    if not weights.numel():
        raise ValueError(f"weights has shape {list(weights.shape)}; it must not be empty")
    if dtype not in OUT_DTYPES:
        raise ValueError(f"dtype is {dtype}; allowed are {', '.join(map(str, OUT_DTYPES))}")
    parts = part_count(groups, outputs, channels)
    if out is None:
        out = torch.empty(tokens, groups, outputs, dtype=dtype, device=x.device)
    elif parts > 1:
        raise ValueError(f"the {channels} channels are added in {parts} parts; out must be None")
    check_tensor("out", out, (tokens, groups, outputs), (dtype,), like=x)
    if not tokens:
        return out
    sums = out[None]
    if parts > 1:
        sums = torch.empty(parts, *out.shape, dtype=torch.float32, device=x.device)
    tiles = triton.cdiv(tokens, BLOCK_TOKENS) * triton.cdiv(outputs, BLOCK_OUTPUTS)
    fixed_order_linear_kernel[(tiles, groups, parts)](
        x,
        weights,
        sums,
        tokens,
        outputs,
        channels,
        PART_CHANNELS if parts > 1 else channels,
        x.stride(0),
        x.stride(1),
        *weights.stride(),
        *sums.stride()[:3],
        PIECES=pieces,
        BLOCK_T=BLOCK_TOKENS,
        BLOCK_N=BLOCK_OUTPUTS,
        BLOCK_K=min(BLOCK_CHANNELS, max(LEAST_CHANNELS, triton.next_power_of_2(channels))),
        num_warps=WARPS,
        num_stages=STAGES,
    )
    if parts > 1:
        add_parts(sums, out)
    return out


def part_count(groups: int, outputs: int, channels: int) -> int:
    """Returns in how many parts the channels of such weights are added."""
    few = groups * triton.cdiv(outputs, BLOCK_OUTPUTS) < FEW_TILES
    return triton.cdiv(channels, PART_CHANNELS) if few else 1


def bfloat16_pieces(weight: Tensor) -> Tensor:
    """Returns [P, *shape] bfloat16 whose sum a weight is, P as few as it takes and at most 3.

    Exact for magnitudes between 2^-110 and bfloat16's largest; smaller ones lose what lies below
    2^-133. Raises ValueError for dtypes other than bfloat16 and float32.
    """
    if weight.dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"weight is {weight.dtype}; it must be torch.bfloat16 or torch.float32")
    if weight.dtype == torch.bfloat16:
        return weight[None]
    pieces, rest = [], weight
    for _ in range(PIECES):
        pieces.append(rest.bfloat16())
        rest = rest - pieces[-1]
        if not rest.any():
            break
    return torch.stack(pieces)


def _specialisation(
    name: str, out: str, *, pieces: int, channel_first: bool, budget: Budget
) -> Specialisation:
    scalars = ("outputs", "channels", "part_channels", "x_stride", "x_group_stride")
    strides = ("piece_stride", "group_stride", "out_stride", "out_group_stride")
    contiguous, other = ("channel_stride", "output_stride")[:: 1 if channel_first else -1]
    return Specialisation(
        name=name,
        kernel=fixed_order_linear_kernel,
        signature={
            "x": "*bf16",
            "weights": "*bf16",
            "out": out,
            **dict.fromkeys(("tokens", *scalars, *strides, other, "out_part_stride"), "i32"),
        },
        constants={
            contiguous: 1,
            "PIECES": pieces,
            "BLOCK_T": BLOCK_TOKENS,
            "BLOCK_N": BLOCK_OUTPUTS,
            "BLOCK_K": BLOCK_CHANNELS,
        },
        aligned=("x", "weights", "out", *scalars, *strides, other),
        warps=WARPS,
        stages=STAGES,
        budget=budget,
    )


SPECIALISATIONS: tuple[Specialisation, ...] = (
    _specialisation(
        "logits, router", "*fp32", pieces=1, channel_first=True,
        budget=Budget(168, 75_000, 3, "HGMMA"),
    ),
    _specialisation(
        "logits, router: float32 weights", "*fp32", pieces=PIECES, channel_first=True,
        budget=Budget(168, 175_000, 1, "HGMMA"),
    ),
    _specialisation(
        "absorbing products", "*bf16", pieces=1, channel_first=False,
        budget=Budget(168, 75_000, 3, "HGMMA"),
    ),
)  # fmt: skip

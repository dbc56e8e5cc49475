# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""What the absorbed-attention kernels share: reading latent rows, one online-softmax step, output.

A tile of rows is read once and stands in shared memory once, as keys and as values. The step has a
form of its own: the rotary product comes first, its mask stands inside a condition that the
compiler cannot decide, the latent product accumulates onto the result, and the softmax stands
inside a second such condition. The compiler then does not see the two products as a chain, which
it would lay out so that both warp groups compute all scores, in registers that do not exist.

Scores are kept in powers of two: the softmax scale arrives multiplied by log2(e).

FP8 rows become bfloat16 by moving bits. The seven bits below an e4m3 sign, shifted to the top of
bfloat16's seven mantissa and lowest exponent bits, are the same number times 2^-120, subnormals
included; the group's scale times 2^120 undoes it. Exact for powers of two up to 2^7, for all codes
but the two NaN, which a cache does not hold. It relies on bfloat16 products that keep subnormal
inputs, as PTX promises. The interpreter has no inline assembly and no bfloat16 arithmetic: there
the same bits are moved into float32 (`COMPUTE`), and the assembly is covered by a test that
emulates its instructions over all codes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.cache import LATENT_GROUP, latent_row_bytes
from kernels.hopper.arguments import check_choice, check_tensor
from kernels.hopper.rounding import to_dtype
from kernels.hopper.specialisation import (
    REGISTERS_PER_SM,
    RESERVED_SHARED_BYTES,
    SHARED_BYTES_PER_SM,
    Budget,
)

LOG2_E = 1.4426950408889634
HEADS = (16, 32, 64, 128)
"""Query heads per rank that the kernels are built for."""
RUNNING_MAX = tl.constexpr(-1e30)
"""Where the maximum starts: finite, so that exp2(-inf - maximum) is 0 in a row without a key."""
TWO_TO_120 = tl.constexpr(float(2**120))


E4M3_TO_BFLOAT16 = tl.constexpr("""{
    .reg .b32 low, high, low_bits, high_bits;
    prmt.b32 low, 0, $2, 0x5040;
    prmt.b32 high, 0, $2, 0x7060;
    shr.u32 low_bits, low, 4;
    shr.u32 high_bits, high, 4;
    and.b32 low, low, 0x80008000;
    and.b32 high, high, 0x80008000;
    lop3.b32 $0, low_bits, 0x07F007F0, low, 0xEA;
    lop3.b32 $1, high_bits, 0x07F007F0, high, 0xEA;
}""")
"""Four codes in $2 become four bfloat16 in $0 and $1: each byte goes to the top of its 16 bits;
0xEA is (a and b) or c."""


@triton.jit
def e4m3_by_assembly(codes):
    """bfloat16 times 2^-120 of e4m3 codes, four to a register."""
    return tl.inline_asm_elementwise(
        E4M3_TO_BFLOAT16, "=r,=r,r", [codes], dtype=tl.bfloat16, is_pure=True, pack=4
    )


@triton.jit
def e4m3_by_shifts(codes):
    """float32 times 2^-120 of e4m3 codes: the same bits, where there is no assembly."""
    wide = codes.to(tl.uint32)
    return (((wide & 0x80) << 24) | ((wide & 0x7F) << 20)).to(tl.float32, bitcast=True)


@triton.jit
def load_fp8_rows(
    cache,
    row,
    valid,
    C: tl.constexpr,
    R: tl.constexpr,
    ROW: tl.constexpr,
    GROUP: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Latents [N, C] and rope keys [N, R] of byte rows `row` [N] int64 of ROW bytes.

    Where not valid, the latents are 0; the rope keys are whatever stands in row 0.
    """
    groups: tl.constexpr = C // GROUP
    channel = tl.arange(0, C)
    start = cache + row[:, None] * ROW
    rope = tl.load(
        cache.to(tl.pointer_type(tl.bfloat16))
        + row[:, None] * (ROW // 2)
        + ((C + 4 * groups) // 2)
        + tl.arange(0, R)[None, :]
    )
    scales = tl.load(
        cache.to(tl.pointer_type(tl.float32))
        + row[:, None] * (ROW // 4)
        + (C // 4)
        + tl.arange(0, groups)[None, :],
        mask=valid[:, None],
        other=0.0,
    )
    codes = tl.load(start + channel[None, :], mask=valid[:, None], other=0)
    if COMPUTE == tl.bfloat16:
        small = e4m3_by_assembly(codes)
    else:
        small = e4m3_by_shifts(codes)
    factors = (scales * TWO_TO_120).to(COMPUTE)
    grouped = tl.reshape(small, [row.shape[0], groups, GROUP]) * factors[:, :, None]
    return tl.reshape(grouped, [row.shape[0], C]), rope.to(COMPUTE)


@triton.jit
def load_rows(
    cache,
    row,
    valid,
    C: tl.constexpr,
    R: tl.constexpr,
    ROW: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """The same from rows of ROW values that need no conversion."""
    start = cache + row[:, None] * ROW
    rope = tl.load(start + C + tl.arange(0, R)[None, :])
    latents = tl.load(start + tl.arange(0, C)[None, :], mask=valid[:, None], other=0.0)
    return latents.to(COMPUTE), rope.to(COMPUTE)


@triton.jit
def attend(
    q_latent,
    q_rope,
    latents,
    ropes,
    valid,
    best,
    total,
    sums,
    scale_log2,
    opaque,
    COMPUTE: tl.constexpr,
):
    """One online-softmax step over a tile of rows.

    best [M] running maximum, total [M] sum of weights, sums [M, C] weighted sum of the latents.
    opaque: an integer argument of the kernel that is always positive, which only the host knows.
    """
    scores = tl.dot(q_rope, tl.trans(ropes))
    if opaque > 0:
        # Before the latent product: a NaN that a masked row left in the rope keys ends here.
        scores = tl.where(valid[None, :], scores, float("-inf"))
    scores = tl.dot(q_latent, tl.trans(latents), scores)
    if opaque > 0:
        higher = tl.maximum(best, tl.max(scores, 1) * scale_log2)
        decay = tl.exp2(best - higher)
        weights = tl.exp2(scores * scale_log2 - higher[:, None])
        total = total * decay + tl.sum(weights, 1)
        best = higher
        factors = weights.to(COMPUTE)
    else:
        # Constants here would cost registers in the branch that is taken.
        factors = scores.to(COMPUTE)
        decay = best
    sums = tl.dot(factors, latents, sums * decay[:, None])
    return best, total, sums


@triton.jit
def store_average(out, lse, row, best, total, sums, C: tl.constexpr, NATURAL: tl.constexpr):
    """Writes the averages and the logarithms of the weights' sums of rows `row` [M] int64.

    A row without a key gets 0 and -inf. NATURAL: logarithms to base e instead of 2.
    """
    some = total > 0
    safe = tl.where(some, total, 1.0)
    average = sums * (1.0 / safe)[:, None]
    average = to_dtype(average, out.dtype.element_ty)
    tl.store(out + row[:, None] * C + tl.arange(0, C)[None, :], average)
    logarithm = tl.where(some, best + tl.log2(safe), float("-inf"))
    if NATURAL:
        logarithm *= 0.6931471805599453  # ln 2
    tl.store(lse + row, logarithm)


class Tile(NamedTuple):
    """How a CTA goes over the rows: what the tuned sizes were compiled to hold."""

    heads: int
    """Query heads of a CTA. Below 64 there is no wgmma: the products are mma.sync."""
    entries: int
    """Latent rows of one step."""
    warps: int
    stages: int
    ctas_per_sm: int
    """At C = 512, R = 64."""


FP8_TILES = {
    16: Tile(16, 32, 4, 3, 2),
    32: Tile(32, 64, 8, 3, 1),
    64: Tile(64, 64, 8, 3, 1),
    128: Tile(64, 64, 8, 3, 1),
}
"""Three stages: a tile's slots are read two steps ahead, its rows one; the conversion empties the
buffer early, so one is enough to read during the products."""
# Triton 3.6 does not compile the wgmma form with reads ahead, and spills mma.sync's second buffer.
_READS_AHEAD = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 7)
BFLOAT16_TILES = {
    16: Tile(16, 32, 4, 5, 2),
    32: Tile(32, 64, 8, 5 if _READS_AHEAD else 3, 1),
    64: Tile(64, 64, 8, 3 if _READS_AHEAD else 1, 1),
    128: Tile(64, 64, 8, 3 if _READS_AHEAD else 1, 1),
}
"""Rows need two buffers here, since the products read them where they arrive. wgmma gets a second
one by itself; mma.sync only with five stages, which reads rows two steps ahead."""
OUT_DTYPES = (torch.bfloat16, torch.float32)


class Rows(NamedTuple):
    """The compile-time constants of a cache's rows and of what is computed in."""

    C: int
    R: int
    ROW: int
    """From one row to the next, in the cache's elements."""
    GROUP: int
    """Latents that share a scale, 0 without scales."""
    COMPUTE: tl.dtype
    """What the products take; they add in float32."""


def check_attention(
    q: Tensor, cache: Tensor, scale: float, latent: int, out_dtype: torch.dtype
) -> tuple[Rows, Tile]:
    """Returns the row constants and the tile for queries [T, H, C + R] over a cache [S, row].

    Raises ValueError, naming what is allowed, for what the kernels do not support.
    """
    check_tensor("q", q, (None, None, None), (torch.bfloat16,))
    heads, rope = q.shape[1], q.shape[2] - latent
    check_choice("q's number of heads", heads, HEADS)
    for name, size in (("latent", latent), ("q's rope width", rope)):
        if size < 16 or size & (size - 1):
            raise ValueError(f"{name} is {size}; it must be a power of two, at least 16")
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale is {scale}; it must be positive and finite")
    if out_dtype not in OUT_DTYPES:
        raise ValueError(f"out_dtype is {out_dtype}; it must be one of {OUT_DTYPES}")
    fp8 = cache.dtype == torch.uint8
    if fp8 and latent % LATENT_GROUP:
        raise ValueError(f"latent is {latent}; an fp8 cache needs a multiple of {LATENT_GROUP}")
    width = latent_row_bytes(latent, rope, "fp8") if fp8 else latent + rope
    check_tensor("cache", cache, (None, width), (torch.uint8, torch.bfloat16), like=q)
    # The scales are read as float32 and the rope values as bfloat16, where they stand.
    if fp8 and (cache.stride(0) % 4 or cache.data_ptr() % 4):
        raise ValueError(
            f"cache starts at {cache.data_ptr():#x} with rows of {cache.stride(0)} bytes; "
            "both must be multiples of 4"
        )
    interpreted = triton.knobs.runtime.interpret
    compute = tl.float32 if interpreted else tl.bfloat16
    rows = Rows(latent, rope, cache.stride(0), LATENT_GROUP if fp8 else 0, compute)
    return rows, (FP8_TILES if fp8 else BFLOAT16_TILES)[heads]


def rows_constants(*, fp8: bool) -> dict[str, object]:
    """Returns the row constants of the 671B model's cache, for ahead-of-time compilation."""
    rows = Rows(512, 64, 656, 128, tl.bfloat16) if fp8 else Rows(512, 64, 576, 0, tl.bfloat16)
    return rows._asdict()


def attention_budget(tile: Tile) -> Budget:
    """Returns what a kernel over such tiles may use at C = 512, R = 64."""
    threads = tile.warps * 32
    return Budget(
        registers=min(255, REGISTERS_PER_SM // (tile.ctas_per_sm * threads)),
        shared_bytes=SHARED_BYTES_PER_SM // tile.ctas_per_sm - RESERVED_SHARED_BYTES,
        ctas_per_sm=tile.ctas_per_sm,
        mma="HGMMA" if tile.heads >= 64 else "HMMA",
    )

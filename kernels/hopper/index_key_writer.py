# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Index keys into the paged cache: LayerNorm, RoPE, Hadamard and FP8 rounding in one pass.

The steps round where the torch path rounds (kernels.norm.layer_norm, kernels.rope.rope_half_split,
kernels.hadamard.hadamard, kernels.cache.IndexCache.write), without fused multiply-adds. Mean,
variance and the products of the Hadamard rotation are added in another order than there; a sum can
differ in its last bits of float32, and a stored value by one step of e4m3.
A token's key does not depend on the other tokens of the call.

In the interpreter, which multiplies no bfloat16, the Hadamard rotation takes float32 copies of the
same values; what it does not reach besides are the conversions of kernels.hopper.rounding.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.hadamard import hadamard_matrix
from kernels.hopper.arguments import check_choice, check_tensor
from kernels.hopper.rounding import NATIVE, power_of_two_scale, rounded, to_e4m3
from kernels.hopper.specialisation import Budget, Specialisation

INPUT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WIDTHS = (16, 32, 64, 128, 256)
BLOCK_TOKENS = 16
WARPS = 4


@triton.jit
def half_split_partner(channel, R: tl.constexpr):
    """Returns the channel that each of the first R rotates with; for the others themselves."""
    second = tl.where(channel < R, channel - R // 2, channel)
    return tl.where(channel < R // 2, channel + R // 2, second)


@triton.jit
def half_split_angles(table, t, channel, inside, R: tl.constexpr):
    """Returns (cos, sin) [tokens, D] of table rows t; channels from R on do not turn."""
    pair = (t * R)[:, None] + (2 * (channel % (R // 2)))[None, :]
    turning = inside[:, None] & (channel < R)[None, :]
    cos = tl.load(table + pair, mask=turning, other=1.0)
    return cos, tl.load(table + pair + 1, mask=turning, other=0.0)


@triton.jit
def half_split_rotated(x, partner, cos, sin, first):
    """Returns float32 x turned: (a, b) to (a cos - b sin, a sin + b cos).

    partner: x at half_split_partner; first: whether an element is a pair's a.
    """
    crossed = partner * sin
    return x * cos + tl.where(first, -crossed, crossed)


@triton.jit
def hadamard_rotated(x, matrix, DTYPE: tl.constexpr):
    """Returns x [rows, D], of DTYPE's precision, times the matrix [D, D] of DTYPE, in float32."""
    if NATIVE:
        # Three products of 11 bits each keep float32's precision, should the inputs have it.
        return tl.dot(x.to(DTYPE), matrix, input_precision="tf32x3")
    else:
        # The interpreter multiplies no bfloat16. float32 holds both factors exactly.
        return tl.dot(x, matrix.to(tl.float32), input_precision="ieee")


@triton.jit(do_not_specialize=["tokens"])
def index_key_writer_kernel(
    keys,
    weight,
    bias,
    table,
    matrix,
    slots,
    page_values,
    page_scales,
    tokens,
    keys_stride,
    values_stride,
    scales_stride,
    eps,
    D: tl.constexpr,
    R: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    slot = tl.load(slots + t, mask=t < tokens, other=-1).to(tl.int64)
    written = slot >= 0
    t = t.to(tl.int64)
    channel = tl.arange(0, D)
    inside = written[:, None]
    row = keys + (t * keys_stride)[:, None]

    x = tl.load(row + channel[None, :], mask=inside, other=0.0)
    DTYPE: tl.constexpr = x.dtype
    x = x.to(tl.float32)
    mean = (tl.sum(x, axis=1) * (1.0 / D))[:, None]
    centred = x - mean
    variance = tl.sum(centred * centred, axis=1) * (1.0 / D)
    inverse_norm = tl.div_rn(tl.full([BLOCK_T], 1.0, tl.float32), tl.sqrt_rn(variance + eps))
    x = centred * inverse_norm[:, None]
    x = rounded(x * tl.load(weight + channel)[None, :] + tl.load(bias + channel)[None, :], DTYPE)

    # Read again rather than exchanged between threads: the line is in the L1 cache.
    other = half_split_partner(channel, R)
    partner = tl.load(row + other[None, :], mask=inside, other=0.0).to(tl.float32) - mean
    partner = partner * inverse_norm[:, None]
    partner = partner * tl.load(weight + other)[None, :] + tl.load(bias + other)[None, :]
    cos, sin = half_split_angles(table, t, channel, written, R)
    x = half_split_rotated(x, rounded(partner, DTYPE), cos, sin, (channel < R // 2)[None, :])

    both = tl.load(matrix + channel[:, None] * D + channel[None, :])
    x = rounded(hadamard_rotated(rounded(x, DTYPE), both, DTYPE), DTYPE)

    scale, inverse = power_of_two_scale(tl.max(tl.abs(x), axis=1))
    page, offset = slot // PAGE, slot % PAGE
    tl.store(
        page_values + (page * values_stride + offset * D)[:, None] + channel[None, :],
        to_e4m3(x * inverse[:, None]),
        mask=inside,
    )
    tl.store(page_scales + page * scales_stride + PAGE * D // 4 + offset, scale, mask=written)


def write_index_keys(
    pages: Tensor,
    slots: Tensor,
    keys: Tensor,
    *,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    table: Tensor,
    page_tokens: int,
) -> None:
    """Writes the normed and rotated index keys of T tokens into one layer's FP8 pages.

    pages [P, page_tokens * (D + 4)] uint8 in the layout of kernels.cache (8,448 bytes at 64 tokens
    and D=128); pages may lie apart by any multiple of 4 bytes. slots [T] int64; a token whose slot
    is -1 is skipped. keys [T, D] before their norm, bfloat16, float16 or float32, with any row
    stride; weight, bias [D] float32; table [T, R/2] complex64 of kernels.rope.rope_table, R <= D.
    Raises ValueError for anything else. Source: DeepSeek-V3.2 report, section 2; DeepGEMM's pages.
    """
    check_tensor("keys", keys, (None, None), INPUT_DTYPES)
    tokens, width = keys.shape
    check_choice("the index width", width, WIDTHS)
    check_tensor("slots", slots, (tokens,), (torch.int64,), like=keys)
    check_tensor("weight", weight, (width,), (torch.float32,), like=keys)
    check_tensor("bias", bias, (width,), (torch.float32,), like=keys)
    check_tensor("table", table, (tokens, None), (torch.complex64,), like=keys)
    check_pages(pages, width, page_tokens, like=keys)
    rope = check_rope(table, width)
    if tokens == 0:
        return
    values, scales = pages.view(torch.float8_e4m3fn), pages.view(torch.float32)
    index_key_writer_kernel[(triton.cdiv(tokens, BLOCK_TOKENS),)](
        keys,
        weight,
        bias,
        torch.view_as_real(table.contiguous()),
        hadamard_matrix(width, keys.dtype, keys.device),
        slots,
        values,
        scales,
        tokens,
        keys.stride(0),
        values.stride(0),
        scales.stride(0),
        eps,
        D=width,
        R=rope,
        PAGE=page_tokens,
        BLOCK_T=BLOCK_TOKENS,
        num_warps=WARPS,
        enable_fp_fusion=False,
    )


def check_pages(pages: Tensor, width: int, page_tokens: int, *, like: Tensor) -> None:
    """Raises ValueError unless these are FP8 pages of `page_tokens` index keys of `width`."""
    if page_tokens < 1 or page_tokens & (page_tokens - 1):
        raise ValueError(f"page_tokens is {page_tokens}; it must be a power of two")
    check_tensor("pages", pages, (None, page_tokens * (width + 4)), (torch.uint8,), like=like)
    if pages.stride(0) % 4 or pages.storage_offset() % 4:
        raise ValueError(
            f"pages has stride {pages.stride(0)} and offset {pages.storage_offset()} bytes; "
            "both must be multiples of 4"
        )


def check_rope(table: Tensor, width: int) -> int:
    """Returns the rotary width of a table [T, R/2]; raises ValueError unless 0 < R <= width."""
    rope = 2 * table.shape[1]
    if not 0 < rope <= width:
        raise ValueError(f"table rotates {rope} channels; index vectors have 2 to {width}")
    return rope


SPECIALISATIONS = (
    Specialisation(
        name="fp8",
        kernel=index_key_writer_kernel,
        signature={
            "keys": "*bf16",
            "weight": "*fp32",
            "bias": "*fp32",
            "table": "*fp32",
            "matrix": "*bf16",
            "slots": "*i64",
            "page_values": "*fp8e4nv",
            "page_scales": "*fp32",
            **dict.fromkeys(("tokens", "keys_stride", "values_stride", "scales_stride"), "i32"),
            "eps": "fp32",
        },
        constants={"D": 128, "R": 64, "PAGE": 64, "BLOCK_T": BLOCK_TOKENS},
        aligned=(
            "keys",
            "weight",
            "bias",
            "table",
            "matrix",
            "slots",
            "page_values",
            "page_scales",
            "keys_stride",
            "values_stride",
            "scales_stride",
        ),
        warps=WARPS,
        stages=3,
        budget=Budget(registers=128, shared_bytes=48 * 1024, ctas_per_sm=4, mma="HMMA"),
        options={"enable_fp_fusion": False},
    ),
)

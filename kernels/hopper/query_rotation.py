# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The rotary part of attention queries, turned on its way to where the products read it.

Neighbouring values are a pair, as in kernels.rope.rope_interleaved; products and their difference
are rounded to float32 one by one, then to the inputs' dtype. A token's result depends on it alone.

The interpreter does not reach the hardware's conversions (kernels.hopper.rounding).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.hopper.arguments import check_tensor
from kernels.hopper.rounding import to_dtype
from kernels.hopper.specialisation import Budget, Specialisation

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
BLOCK_PAIRS = 2048
"""Pairs of a program at most: 64 heads of 32 pairs."""
WARPS = 4


@triton.jit
def query_rotation_kernel(
    ropes,
    table,
    out,
    heads,
    ropes_token_stride,
    ropes_head_stride,
    out_token_stride,
    out_head_stride,
    R: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    # HALF >= R / 2, a power of two.
    t = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    # Neighbouring values are a pair: [heads, pairs, 2].
    place = tl.arange(0, HALF)[:, None] * 2 + tl.arange(0, 2)[None, :]
    inside = (head < heads)[:, None, None] & (place < R)[None, :, :]
    source = ropes + t * ropes_token_stride + (head * ropes_head_stride)[:, None, None]
    a, b = tl.split(tl.load(source + place[None, :, :], mask=inside, other=0.0).to(tl.float32))
    cos, sin = tl.split(tl.load(table + t * R + place, mask=place < R, other=0.0))
    cos, sin = cos[None, :], sin[None, :]
    turned = to_dtype(tl.join(a * cos - b * sin, a * sin + b * cos), out.dtype.element_ty)
    target = out + t * out_token_stride + (head * out_head_stride)[:, None, None]
    tl.store(target + place[None, :, :], turned, mask=inside)


def rotate_queries(ropes: Tensor, table: Tensor, out: Tensor) -> None:
    """Writes the rotary parts of queries, turned by their tokens' angles, into `out`.

    ropes and out [T, H, R] of one dtype (bfloat16, float16 or float32), last dimension contiguous,
    tokens and heads at any stride; they may be the same memory. table [T, R/2] complex64 of
    kernels.rope.rope_table. Raises ValueError for anything else.
    Source: DeepSeek-V2 report, eq. 43 (decoupled rotary embedding).
    """
    check_tensor("ropes", ropes, (None, None, None), DTYPES)
    tokens, heads, rope = ropes.shape
    if rope % 2 or rope == 0:
        raise ValueError(f"ropes has width {rope}; it must be even and positive")
    check_tensor("out", out, (tokens, heads, rope), (ropes.dtype,), like=ropes)
    check_tensor("table", table, (tokens, rope // 2), (torch.complex64,), like=ropes)
    half = triton.next_power_of_2(rope // 2)
    block_heads = max(1, min(triton.next_power_of_2(heads), BLOCK_PAIRS // half))
    if tokens and heads:
        query_rotation_kernel[(tokens, triton.cdiv(heads, block_heads))](
            ropes,
            torch.view_as_real(table.contiguous()),
            out,
            heads,
            ropes.stride(0),
            ropes.stride(1),
            out.stride(0),
            out.stride(1),
            R=rope,
            HALF=half,
            BLOCK_H=block_heads,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )


_POINTERS = {"ropes": "*bf16", "table": "*fp32", "out": "*bf16"}
_STRIDES = ("ropes_token_stride", "ropes_head_stride", "out_token_stride", "out_head_stride")

SPECIALISATIONS = (
    Specialisation(
        name="bf16, 64 wide",
        kernel=query_rotation_kernel,
        signature={**_POINTERS, "heads": "i32", **dict.fromkeys(_STRIDES, "i32")},
        constants={"R": 64, "HALF": 32, "BLOCK_H": 64},
        aligned=(*_POINTERS, "heads", *_STRIDES),
        warps=WARPS,
        stages=3,
        budget=Budget(registers=128, shared_bytes=32 * 1024, ctas_per_sm=4, mma=None),
        options={"enable_fp_fusion": False},
    ),
)

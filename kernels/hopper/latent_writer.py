# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Latent rows into the paged cache: RMSNorm, RoPE, FP8 rounding and the 656-byte row in one pass.

The steps round where the torch path rounds (kernels.norm.rms_norm, kernels.rope.rope_interleaved,
kernels.cache.LatentCache.write), and nothing is contracted into fused multiply-adds: given the
same sum of squares, the row is the same to the last bit. The sum itself is added in another order,
which can move a normed value by one unit in the last place of float32.
A token's row does not depend on the other tokens of the call.

The interpreter does not reach the hardware's conversions (kernels.hopper.rounding).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.cache import LATENT_GROUP, latent_row_bytes
from kernels.hopper.arguments import check_tensor
from kernels.hopper.rounding import power_of_two_scale, rounded, to_dtype, to_e4m3
from kernels.hopper.specialisation import Budget, Specialisation

INPUT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
BLOCK_TOKENS = 4
WARPS = 4


@triton.jit(do_not_specialize=["tokens"])
def latent_writer_kernel(
    latents,
    rope_keys,
    weight,
    table,
    slots,
    row_values,
    row_scales,
    row_ropes,
    tokens,
    latents_stride,
    rope_keys_stride,
    values_stride,
    scales_stride,
    ropes_stride,
    eps,
    C: tl.constexpr,
    R: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_T: tl.constexpr,
    FP8: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    # GROUPS * GROUP >= C and HALF >= R / 2, powers of two. ALIGNED: rows start at 16 bytes' steps.
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    slot = tl.load(slots + t, mask=t < tokens, other=-1).to(tl.int64)
    written = slot >= 0
    t = t.to(tl.int64)

    channel = tl.arange(0, GROUPS)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = written[:, None, None] & (channel < C)[None, :, :]
    x = tl.load(
        latents + (t * latents_stride)[:, None, None] + channel[None, :, :], mask=inside, other=0.0
    )
    DTYPE: tl.constexpr = x.dtype
    x = x.to(tl.float32)
    mean_square = tl.sum(tl.sum(x * x, axis=2), axis=1) * (1.0 / C)
    w = tl.load(weight + channel, mask=channel < C, other=0.0)
    norm = tl.sqrt_rn(mean_square + eps)
    x = rounded(tl.div_rn(x * w[None, :, :], norm[:, None, None] + tl.zeros_like(x)), DTYPE)

    rope_start = slot * ropes_stride
    value = row_values + (slot * values_stride)[:, None, None] + channel[None, :, :]
    if FP8:
        scale_start = slot * scales_stride
        if ALIGNED:
            scale_start = tl.multiple_of(scale_start, 4)
            rope_start = tl.multiple_of(rope_start, 8)
        scale, inverse = power_of_two_scale(tl.max(tl.abs(x), axis=2))
        tl.store(value, to_e4m3(x * inverse[:, :, None]), mask=inside)
        group = tl.arange(0, GROUPS)
        tl.store(
            row_scales + scale_start[:, None] + C // 4 + group[None, :],
            scale,
            mask=written[:, None] & (group < C // GROUP)[None, :],
        )
    else:
        tl.store(value, to_dtype(x, row_values.dtype.element_ty), mask=inside)

    ROPE_START: tl.constexpr = C // 2 + 2 * (C // GROUP) if FP8 else C
    # Neighbouring values are a pair: [tokens, pairs, 2].
    place = tl.arange(0, HALF)[:, None] * 2 + tl.arange(0, 2)[None, :]
    inside = written[:, None, None] & (place < R)[None, :, :]
    a, b = tl.split(
        tl.load(
            rope_keys + (t * rope_keys_stride)[:, None, None] + place[None, :, :],
            mask=inside,
            other=0.0,
        ).to(tl.float32)
    )
    cos, sin = tl.split(
        tl.load(table + (t * R)[:, None, None] + place[None, :, :], mask=inside, other=0.0)
    )
    turned = rounded(tl.join(a * cos - b * sin, a * sin + b * cos), DTYPE)
    tl.store(
        row_ropes + rope_start[:, None, None] + ROPE_START + place[None, :, :],
        to_dtype(turned, row_ropes.dtype.element_ty),
        mask=inside,
    )


def write_latents(
    rows: Tensor,
    slots: Tensor,
    latents: Tensor,
    rope_keys: Tensor,
    *,
    weight: Tensor,
    eps: float,
    table: Tensor,
) -> None:
    """Writes the normed latents and the rotated rope keys of T tokens into one layer's cache rows.

    rows [S, W]: uint8, the FP8 rows of kernels.cache (656 bytes at C=512, R=64), or bfloat16 or
    float32 with W = C + R; rows may lie apart. slots [T] int64; a token whose slot is -1 is
    skipped. latents [T, C] before their norm and rope_keys [T, R] before their rotation, bfloat16,
    float16 or float32, each with any row stride; weight [C] float32; table [T, R/2] complex64 of
    kernels.rope.rope_table. Raises ValueError for anything else.
    Source: DeepSeek-V3.2 report, section 2; the FP8 row of FlashMLA.
    """
    check_tensor("latents", latents, (None, None), INPUT_DTYPES)
    (tokens, width), rope = latents.shape, rope_keys.shape[-1]
    check_tensor("rope_keys", rope_keys, (tokens, None), (latents.dtype,), like=latents)
    check_tensor("slots", slots, (tokens,), (torch.int64,), like=latents)
    check_tensor("weight", weight, (width,), (torch.float32,), like=latents)
    check_tensor("table", table, (tokens, rope // 2), (torch.complex64,), like=latents)
    fp8 = rows.dtype == torch.uint8
    if rope % 2 or rope == 0:
        raise ValueError(f"rope_keys has width {rope}; it must be even and positive")
    if fp8 and width % LATENT_GROUP:
        raise ValueError(f"latents has width {width}; FP8 rows need a multiple of {LATENT_GROUP}")
    row_width = latent_row_bytes(width, rope, "fp8") if fp8 else width + rope
    row_dtypes = (torch.uint8, torch.bfloat16, torch.float32)
    check_tensor("rows", rows, (None, row_width), row_dtypes, like=latents)
    if fp8 and (rows.stride(0) % 4 or rows.storage_offset() % 4):
        raise ValueError(
            f"rows has stride {rows.stride(0)} and offset {rows.storage_offset()} bytes; "
            "both must be multiples of 4"
        )
    if tokens == 0:
        return
    if fp8:
        parts = rows.view(torch.float8_e4m3fn), rows.view(torch.float32), rows.view(torch.bfloat16)
    else:
        parts = rows, rows, rows
    group = LATENT_GROUP if fp8 else triton.next_power_of_2(width)
    latent_writer_kernel[(triton.cdiv(tokens, BLOCK_TOKENS),)](
        latents,
        rope_keys,
        weight,
        torch.view_as_real(table.contiguous()),
        slots,
        *parts,
        tokens,
        latents.stride(0),
        rope_keys.stride(0),
        *(part.stride(0) for part in parts),
        eps,
        C=width,
        R=rope,
        GROUP=group,
        GROUPS=triton.next_power_of_2(triton.cdiv(width, group)),
        HALF=triton.next_power_of_2(rope // 2),
        BLOCK_T=BLOCK_TOKENS,
        FP8=fp8,
        ALIGNED=rows.stride(0) * rows.element_size() % 16 == 0,
        num_warps=WARPS,
        enable_fp_fusion=False,
    )


def _specialisation(name: str, *, fp8: bool) -> Specialisation:
    pointers = {
        "latents": "*bf16",
        "rope_keys": "*bf16",
        "weight": "*fp32",
        "table": "*fp32",
        "slots": "*i64",
        "row_values": "*fp8e4nv" if fp8 else "*bf16",
        "row_scales": "*fp32" if fp8 else "*bf16",
        "row_ropes": "*bf16",
    }
    strides = ("latents_stride", "rope_keys_stride", "values_stride")
    return Specialisation(
        name=name,
        kernel=latent_writer_kernel,
        signature={
            **pointers,
            "tokens": "i32",
            **dict.fromkeys((*strides, "scales_stride", "ropes_stride"), "i32"),
            "eps": "fp32",
        },
        constants={
            "C": 512,
            "R": 64,
            "GROUP": LATENT_GROUP if fp8 else 512,
            "GROUPS": 4 if fp8 else 1,
            "HALF": 32,
            "BLOCK_T": BLOCK_TOKENS,
            "FP8": fp8,
            "ALIGNED": True,
        },
        aligned=(*pointers, *strides),
        warps=WARPS,
        stages=3,
        budget=Budget(registers=64, shared_bytes=8 * 1024, ctas_per_sm=8, mma=None),
        options={"enable_fp_fusion": False},
    )


SPECIALISATIONS = (_specialisation("fp8", fp8=True), _specialisation("bf16", fp8=False))

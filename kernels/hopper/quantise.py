# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Activations to e4m3 by groups of 128 for the FP8 products, alone or with what comes before them.

A group's scale is a power of two found from the bits of its largest magnitude, so that the result
is that of `kernels.fp8.quantise_groups` to the last bit. Scales are written with the tokens
contiguous, as the products read them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.hopper.arguments import check_tensor
from kernels.hopper.rounding import power_of_two_scale, rounded, to_dtype, to_e4m3
from kernels.hopper.specialisation import Budget, Specialisation

GROUP = 128
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MAX_WIDTH = 16_384
"""Widest row that one program norms in its registers."""
_TILE_TOKENS = 16


class NormedQuantised(NamedTuple):
    """What `rms_norm_quantise` returns."""

    values: Tensor
    """[T, D] e4m3."""
    scales: Tensor
    """[T, D / 128] float32, tokens contiguous."""
    normed: Tensor | None
    """[T, D] in x's dtype, before quantising; None unless asked for."""
    summed: Tensor
    """[T, D] in x's dtype: x + residual, or x itself without one."""


@triton.jit
def silu(x):
    """x * sigmoid(x) of float32 x, without an exponential that overflows."""
    decay = tl.exp(-tl.abs(x))
    return x * tl.where(x >= 0, 1.0, decay) / (1.0 + decay)


@triton.jit
def _quantise_rows(tile):
    """e4m3 of a float32 tile [rows, group], and the rows' scales."""
    scale, inverse = power_of_two_scale(tl.max(tl.abs(tile), 1))
    return to_e4m3(tile * inverse[:, None]), scale


@triton.jit(do_not_specialize=["tokens", "scale_stride"])
def quantise_kernel(
    x,
    values,
    scales,
    used,
    tokens,
    x_stride,
    width,
    scale_stride,
    GATED: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One program per (tile of tokens, group); GATED: of silu(x's first half) * its second."""
    token = tl.program_id(0) * BLOCK_TOKENS
    if used is not None:
        tokens = tl.load(used)
    if token < tokens:
        group = tl.program_id(1)
        rows = token + tl.arange(0, BLOCK_TOKENS)
        columns = group * GROUP + tl.arange(0, GROUP)
        inside = rows < tokens
        at = x + rows.to(tl.int64)[:, None] * x_stride + columns[None, :]
        tile = tl.load(at, mask=inside[:, None], other=0.0).to(tl.float32)
        if GATED:
            up = tl.load(at + width, mask=inside[:, None], other=0.0).to(tl.float32)
            # Rounded as the unfused op would store it.
            tile = rounded(silu(tile) * up, x.dtype.element_ty)
        quantised, scale = _quantise_rows(tile)
        to = values + rows.to(tl.int64)[:, None] * width + columns[None, :]
        tl.store(to, quantised, mask=inside[:, None])
        tl.store(scales + group.to(tl.int64) * scale_stride + rows, scale, mask=inside)


@triton.jit(do_not_specialize=["scale_stride"])
def rms_norm_quantise_kernel(
    x,
    residual,
    weight,
    values,
    scales,
    normed,
    summed,
    groups,
    x_stride,
    residual_stride,
    scale_stride,
    eps,
    BLOCK_GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One program per token, the whole row in registers as [BLOCK_GROUPS, GROUP]."""
    token = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, BLOCK_GROUPS)
    inside = (group < groups)[:, None]
    at = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    width = groups * GROUP
    tile = tl.load(x + token * x_stride + at, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        tile += tl.load(residual + token * residual_stride + at, mask=inside, other=0.0).to(
            tl.float32
        )
        tile = rounded(tile, x.dtype.element_ty)
        tl.store(summed + token * width + at, to_dtype(tile, x.dtype.element_ty), mask=inside)
    mean_square = tl.sum(tl.sum(tile * tile, 1), 0) / width
    gain = tl.load(weight + at, mask=inside, other=0.0)
    # Rounded as the unfused op would store it.
    tile = rounded(tile * gain * tl.rsqrt(mean_square + eps), x.dtype.element_ty)
    if normed is not None:
        tl.store(normed + token * width + at, to_dtype(tile, x.dtype.element_ty), mask=inside)
    quantised, scale = _quantise_rows(tile)
    tl.store(values + token * width + at, quantised, mask=inside)
    tl.store(scales + group.to(tl.int64) * scale_stride + token, scale, mask=group < groups)


def quantise(x: Tensor, *, used: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns (e4m3 values [T, D], float32 scales [T, D / 128], tokens contiguous) of x [T, D].

    x bfloat16, float16 or float32, last dimension contiguous, D a multiple of 128; used: int32
    [1] on the device, rows from there on are left as they are (and so undefined). Values and
    scales are `fp8.quantise_groups`'s. Raises ValueError for other arguments.
    """
    _check_rows("x", x, GROUP)
    return _quantise(x, x.shape[1], used, gated=False)


def swiglu_quantise(gate_up: Tensor, *, used: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns silu(gate) * up of gate_up [T, 2 W], gate first, quantised as `quantise` does.

    Formed in float32 and rounded to gate_up's dtype before quantising, as `moe.gated` stores it.
    W is a multiple of 128; used as for `quantise`. Raises ValueError for other arguments.
    """
    _check_rows("gate_up", gate_up, 2 * GROUP)
    return _quantise(gate_up, gate_up.shape[1] // 2, used, gated=True)


def rms_norm_quantise(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None = None,
    *,
    keep_normed: bool = False,
) -> NormedQuantised:
    """Returns the RMSNorm of x + residual quantised by groups of 128, and what it came from.

    x, residual [T, D] of one dtype (bfloat16, float16, float32), last dimension contiguous, D a
    multiple of 128 up to 16,384; weight [D] float32. The sum and the norm are each rounded to
    x's dtype, as separate ops would store them; keep_normed returns the latter too, for products
    that are not FP8. Raises ValueError for other arguments.
    """
    _check_rows("x", x, GROUP)
    tokens, width = x.shape
    if width > MAX_WIDTH:
        raise ValueError(f"x has rows of {width}; at most {MAX_WIDTH} are supported")
    check_tensor("weight", weight, (width,), (torch.float32,), like=x)
    summed = x
    if residual is not None:
        check_tensor("residual", residual, (tokens, width), (x.dtype,), like=x)
        summed = torch.empty(tokens, width, dtype=x.dtype, device=x.device)
    normed = torch.empty(tokens, width, dtype=x.dtype, device=x.device) if keep_normed else None
    values, scales = _outputs(x, width)
    groups = width // GROUP
    block_groups = triton.next_power_of_2(groups)
    if tokens:
        rms_norm_quantise_kernel[(tokens,)](
            x,
            residual,
            weight,
            values,
            scales,
            normed,
            summed,
            groups,
            x.stride(0),
            0 if residual is None else residual.stride(0),
            scales.stride(1),
            eps,
            BLOCK_GROUPS=block_groups,
            GROUP=GROUP,
            num_warps=_norm_warps(block_groups),
        )
    return NormedQuantised(values, scales, normed, summed)


def _quantise(x: Tensor, width: int, used: Tensor | None, *, gated: bool) -> tuple[Tensor, Tensor]:
    tokens = x.shape[0]
    if used is not None:
        check_tensor("used", used, (1,), (torch.int32,), like=x)
    values, scales = _outputs(x, width)
    if tokens:
        quantise_kernel[(triton.cdiv(tokens, _TILE_TOKENS), width // GROUP)](
            x,
            values,
            scales,
            used,
            tokens,
            x.stride(0),
            width,
            scales.stride(1),
            GATED=gated,
            BLOCK_TOKENS=_TILE_TOKENS,
            GROUP=GROUP,
            num_warps=4,
        )
    return values, scales


def _outputs(x: Tensor, width: int) -> tuple[Tensor, Tensor]:
    tokens = x.shape[0]
    values = torch.empty(tokens, width, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(width // GROUP, tokens, dtype=torch.float32, device=x.device)
    return values, scales.T


def _check_rows(name: str, x: Tensor, multiple: int) -> None:
    check_tensor(name, x, (None, None), DTYPES)
    if x.shape[1] % multiple or not x.shape[1]:
        raise ValueError(
            f"{name} has rows of {x.shape[1]}; groups of {GROUP} need a multiple of {multiple}"
        )


def _norm_warps(block_groups: int) -> int:
    """Warps such that each thread holds up to 32 values of the row; 16 at most."""
    return max(1, min(16, block_groups * GROUP // (32 * 32)))


def _of_tiles(name: str, gated: bool) -> Specialisation:
    return Specialisation(
        name=name,
        kernel=quantise_kernel,
        signature={
            "x": "*bf16",
            "values": "*fp8e4nv",
            "scales": "*fp32",
            "tokens": "i32",
            "x_stride": "i32",
            "width": "i32",
            "scale_stride": "i32",
        },
        constants={"used": None, "GATED": gated, "BLOCK_TOKENS": _TILE_TOKENS, "GROUP": GROUP},
        aligned=("x", "values", "scales", "x_stride", "width"),
        warps=4,
        stages=3,
        budget=Budget(64, 4096, 8, None),
    )


def _of_rows(width: int, with_residual: bool) -> Specialisation:
    block_groups = triton.next_power_of_2(width // GROUP)
    signature = {
        "x": "*bf16",
        "weight": "*fp32",
        "values": "*fp8e4nv",
        "scales": "*fp32",
        "summed": "*bf16",
        "groups": "i32",
        "x_stride": "i32",
        "residual_stride": "i32",
        "scale_stride": "i32",
        "eps": "fp32",
    }
    constants: dict[str, object] = {"BLOCK_GROUPS": block_groups, "GROUP": GROUP}
    if with_residual:
        signature |= {"residual": "*bf16", "normed": "*bf16"}
    else:
        constants |= {"residual": None, "normed": None}
    pointers = tuple(name for name, kind in signature.items() if kind.startswith("*"))
    return Specialisation(
        name=f"RMSNorm of {width}{', residual added' if with_residual else ''}",
        kernel=rms_norm_quantise_kernel,
        signature=signature,
        constants=constants,
        aligned=(*pointers, "x_stride", "residual_stride"),
        warps=_norm_warps(block_groups),
        stages=3,
        budget=Budget(80, 8192, 3, None),
    )


SPECIALISATIONS: tuple[Specialisation, ...] = (
    _of_tiles("groups", gated=False),
    _of_tiles("SwiGLU", gated=True),
    _of_rows(7168, with_residual=True),
    _of_rows(7168, with_residual=False),
    _of_rows(1536, with_residual=False),
    _of_rows(512, with_residual=False),
)

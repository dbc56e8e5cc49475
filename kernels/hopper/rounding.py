# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Rounding inside kernels: to e4m3 with a power-of-two scale, to bfloat16, to an input's dtype.

On a GPU the conversions are the hardware's (cvt.rn, ties to even). The interpreter truncates
bfloat16 and loses carries into an e4m3 exponent, so there, and only there, they are done on the
bits. tests/kernels/hopper/test_rounding.py holds the bitwise forms to torch's over all ties.
"""

from __future__ import annotations

import triton
import triton.language as tl

NATIVE = tl.constexpr(not triton.knobs.runtime.interpret)


@triton.jit
def power_of_two_scale(amax):
    """Returns (scale, 1 / scale), the scale of kernels.fp8.quantise_groups for this amax.

    2^ceil(log2(amax / 448)) without a division: 448 is 1.75 * 2^8, so the exponent goes up by one
    exactly where the mantissa is above 1.75.
    """
    bits = tl.maximum(amax, 1e-4).to(tl.int32, bitcast=True)
    exponent = ((bits + 0x1FFFFF) >> 23) - 8
    scale = (exponent << 23).to(tl.float32, bitcast=True)
    inverse = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    return scale, inverse


@triton.jit
def to_e4m3(x):
    """Returns float32 x, |x| <= 448, as float8e4nv."""
    if NATIVE:
        return x.to(tl.float8e4nv)
    else:
        bits = x.to(tl.int32, bitcast=True)
        size = bits & 0x7FFFFFFF
        normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
        # Beside 2^14 a float32 resolves 2^-9, the spacing of the subnormals.
        subnormal = (tl.abs(x) + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
        code = tl.where(size < 0x3C800000, subnormal, normal) | ((bits >> 24) & 0x80)
        return code.to(tl.uint8).to(tl.float8e4nv, bitcast=True)


@triton.jit
def to_bfloat16(x):
    """Returns float32 x as bfloat16."""
    if NATIVE:
        return x.to(tl.bfloat16)
    else:
        bits = x.to(tl.uint32, bitcast=True)
        upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return upper.to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def to_dtype(x, DTYPE: tl.constexpr):
    """Returns float32 x in a float dtype of 16 or 32 bits."""
    if DTYPE == tl.bfloat16:
        return to_bfloat16(x)
    else:
        return x.to(DTYPE)


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """Returns float32 x with the precision of a dtype, still as float32."""
    if DTYPE == tl.float32:
        return x
    else:
        return to_dtype(x, DTYPE).to(tl.float32)

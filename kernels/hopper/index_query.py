# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Index queries for the FP8 indexer: RoPE, Hadamard, FP8 rounding, scales into the head weights.

The steps round where the torch path rounds (kernels.rope.rope_half_split,
kernels.hadamard.hadamard, kernels.fp8.quantise_groups), without fused multiply-adds; the products
of the Hadamard rotation are added in another order, so a value can differ by one step of e4m3.
A scale is positive and the same for a whole head: it passes the ReLU and joins the head's weight,
exactly, being a power of two.

What the interpreter does not reach is what it does not of kernels.hopper.index_key_writer.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.hadamard import hadamard_matrix
from kernels.hopper.arguments import check_choice, check_tensor
from kernels.hopper.index_key_writer import (
    INPUT_DTYPES,
    WIDTHS,
    check_rope,
    hadamard_rotated,
    half_split_angles,
    half_split_partner,
    half_split_rotated,
)
from kernels.hopper.indexer_logits import processors
from kernels.hopper.rounding import power_of_two_scale, rounded, to_e4m3
from kernels.hopper.specialisation import Budget, Specialisation

HEADS = (8, 16, 32, 64)
BLOCK_ROWS = 64
"""Rows of a tile, a row being one head of one token: the smallest that wgmma takes."""
WARPS = 4
CTAS_PER_SM = 3


@triton.jit(do_not_specialize=["tokens"])
def index_query_kernel(
    queries,
    weights,
    table,
    matrix,
    values,
    scaled_weights,
    tokens,
    queries_stride,
    weights_stride,
    J: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    head, channel = tl.arange(0, J), tl.arange(0, D)
    other = half_split_partner(channel, R)
    both = tl.load(matrix + channel[:, None] * D + channel[None, :])
    for first in tl.range(
        tl.program_id(0) * BLOCK_T, tokens, tl.num_programs(0) * BLOCK_T, num_stages=1
    ):
        t = first + tl.arange(0, BLOCK_T)
        inside = t < tokens
        t = t.to(tl.int64)
        vector = (t * queries_stride)[:, None] + (head * D)[None, :]
        present = inside[:, None, None]
        start = queries + vector[:, :, None]
        x = tl.load(start + channel[None, None, :], mask=present, other=0.0)
        DTYPE: tl.constexpr = x.dtype
        partner = tl.load(start + other[None, None, :], mask=present, other=0.0)
        # The angles of a token serve all its heads.
        cos, sin = half_split_angles(table, t, channel, inside, R)
        x = half_split_rotated(
            x.to(tl.float32), partner.to(tl.float32), cos[:, None, :], sin[:, None, :],
            (channel < R // 2)[None, None, :],
        )  # fmt: skip
        x = tl.reshape(rounded(x, DTYPE), [BLOCK_T * J, D])
        x = tl.reshape(rounded(hadamard_rotated(x, both, DTYPE), DTYPE), [BLOCK_T, J, D])
        scale, inverse = power_of_two_scale(tl.max(tl.abs(x), axis=2))
        out = (t * J)[:, None] + head[None, :]
        tl.store(
            values + out[:, :, None] * D + channel[None, None, :],
            to_e4m3(x * inverse[:, :, None]),
            mask=present,
        )
        weight = tl.load(
            weights + (t * weights_stride)[:, None] + head[None, :], mask=inside[:, None], other=0.0
        )
        tl.store(scaled_weights + out, weight * scale, mask=inside[:, None])


def quantised_index_queries(
    queries: Tensor, weights: Tensor, table: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns (index queries [T, J, D] e4m3, head weights [T, J] float32) for the FP8 indexer.

    queries [T, J, D] before their rotation, bfloat16, float16 or float32, heads packed, tokens at
    any stride; weights [T, J] float32 with every constant folded in, which are multiplied by the
    queries' scales; table [T, R/2] complex64 of kernels.rope.rope_table, R <= D.
    Raises ValueError for anything else. Source: DeepSeek-V3.2 report, eq. 1.
    """
    check_tensor("queries", queries, (None, None, None), INPUT_DTYPES)
    tokens, heads, width = queries.shape
    check_choice("the number of index heads", heads, HEADS)
    check_choice("the index width", width, WIDTHS)
    if heads > 1 and queries.stride(1) != width:
        raise ValueError(f"queries has a head stride of {queries.stride(1)}; it must be {width}")
    check_tensor("weights", weights, (tokens, heads), (torch.float32,), like=queries)
    check_tensor("table", table, (tokens, None), (torch.complex64,), like=queries)
    rope = check_rope(table, width)
    values = torch.empty(queries.shape, dtype=torch.float8_e4m3fn, device=queries.device)
    scaled = torch.empty(tokens, heads, dtype=torch.float32, device=queries.device)
    if tokens:
        block_tokens = BLOCK_ROWS // heads
        programs = min(triton.cdiv(tokens, block_tokens), CTAS_PER_SM * processors(queries))
        index_query_kernel[(programs,)](
            queries,
            weights,
            torch.view_as_real(table.contiguous()),
            hadamard_matrix(width, queries.dtype, queries.device),
            values,
            scaled,
            tokens,
            queries.stride(0),
            weights.stride(0),
            J=heads,
            D=width,
            R=rope,
            BLOCK_T=block_tokens,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    return values, scaled


SPECIALISATIONS = (
    Specialisation(
        name="fp8",
        kernel=index_query_kernel,
        signature={
            "queries": "*bf16",
            "weights": "*fp32",
            "table": "*fp32",
            "matrix": "*bf16",
            "values": "*fp8e4nv",
            "scaled_weights": "*fp32",
            **dict.fromkeys(("tokens", "queries_stride", "weights_stride"), "i32"),
        },
        constants={"J": 64, "D": 128, "R": 64, "BLOCK_T": BLOCK_ROWS // 64},
        aligned=(
            "queries",
            "weights",
            "table",
            "matrix",
            "values",
            "scaled_weights",
            "queries_stride",
            "weights_stride",
        ),
        warps=WARPS,
        stages=3,
        budget=Budget(registers=168, shared_bytes=72 * 1024, ctas_per_sm=3, mma="HGMMA"),
        options={"enable_fp_fusion": False},
    ),
)

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Dense absorbed MLA decode: each query row attends to all that it may see of its request.

The kernel of sparse MLA with a page table in place of the slot list; rows of a page lie side by
side. Each row divides what it sees among the same number of CTAs.

For what the interpreter does not reach see `kernels.hopper.latent_attention`.

Source: DeepSeek-V2 report, eq. 37-47 (absorbed form); FlashDecoding for splitting.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.hopper.arguments import check_choice, check_tensor
from kernels.hopper.latent_attention import (
    BFLOAT16_TILES,
    FP8_TILES,
    LOG2_E,
    RUNNING_MAX,
    Tile,
    attend,
    attention_budget,
    check_attention,
    load_fp8_rows,
    load_rows,
    rows_constants,
    store_average,
)
from kernels.hopper.specialisation import Specialisation
from kernels.hopper.split_combine import SPLITS, attend_in_splits, choose_splits, device_sms

INVARIANT_SPLIT_POSITIONS = 4096
"""Positions of a part where results must not depend on the batch."""


@triton.jit(do_not_specialize=["first_row", "page_tables_stride"])
def dense_mla_kernel(
    q,
    cache,
    page_tables,
    visible,
    out,
    lse,
    scale_log2,
    first_row,
    rows_per_request,
    least_per_split,
    splits,
    q_token_stride,
    q_head_stride,
    page_tables_stride,
    H: tl.constexpr,
    C: tl.constexpr,
    R: tl.constexpr,
    ROW: tl.constexpr,
    GROUP: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTIAL: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    # GROUP 0: the cache needs no conversion. PARTIAL: out and lse have a dimension of splits.
    pid = tl.program_id(0)
    head_blocks: tl.constexpr = H // BLOCK_H
    part = pid // head_blocks
    split = part % splits
    token = (part // splits).to(tl.int64)
    head = (pid % head_blocks) * BLOCK_H + tl.arange(0, BLOCK_H)

    q_row = q + token * q_token_stride + head[:, None].to(tl.int64) * q_head_stride
    q_latent = tl.load(q_row + tl.arange(0, C)[None, :]).to(COMPUTE)
    q_rope = tl.load(q_row + C + tl.arange(0, R)[None, :]).to(COMPUTE)
    best = tl.full([BLOCK_H], RUNNING_MAX, tl.float32)
    total = tl.zeros([BLOCK_H], tl.float32)
    sums = tl.zeros([BLOCK_H, C], tl.float32)

    length = tl.load(visible + token).to(tl.int32)
    per_split = tl.maximum(tl.cdiv(tl.cdiv(length, splits), BLOCK_K) * BLOCK_K, least_per_split)
    begin = split * per_split
    end = tl.minimum(begin + per_split, length)
    table = page_tables + (first_row + token) // rows_per_request * page_tables_stride
    for first in tl.range(begin, end, BLOCK_K):
        position = first + tl.arange(0, BLOCK_K)
        page = tl.load(table + position // PAGE, mask=position < end, other=-1)
        valid = page >= 0
        row = tl.maximum(page, 0).to(tl.int64) * PAGE + position % PAGE
        if GROUP > 0:
            latents, ropes = load_fp8_rows(cache, row, valid, C, R, ROW, GROUP, COMPUTE)
        else:
            latents, ropes = load_rows(cache, row, valid, C, R, ROW, COMPUTE)
        best, total, sums = attend(
            q_latent, q_rope, latents, ropes, valid, best, total, sums, scale_log2,
            least_per_split, COMPUTE,
        )  # fmt: skip

    if PARTIAL:
        out_row = (token * splits + split) * H + head
    else:
        out_row = token * H + head
    store_average(out, lse, out_row, best, total, sums, C, not PARTIAL)


def dense_mla(
    q: Tensor,
    cache: Tensor,
    page_tables: Tensor,
    visible: Tensor,
    scale: float,
    *,
    latent: int,
    page_tokens: int,
    splits: int | None = None,
    batch_invariant: bool = False,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns what `kernels.dense_mla.dense_mla` returns, computed on the tensor cores.

    q, cache, splits and out_dtype as in `kernels.hopper.sparse_mla.sparse_mla`; page_tables [B, P]
    and visible [T] int32 or int64; page_tokens a power of two, P * page_tokens below 2^31.
    batch_invariant: parts of a fixed number of positions, so that a row's result does not depend,
    to the last bit, on the other rows; their number comes from P.
    Raises ValueError for shapes, dtypes, strides and devices that the kernel does not support.
    """
    out_dtype = q.dtype if out_dtype is None else out_dtype
    rows, tile = check_attention(q, cache, scale, latent, out_dtype)
    tokens, heads, _ = q.shape
    integers = (torch.int32, torch.int64)
    check_tensor("page_tables", page_tables, (None, None), integers, like=q)
    check_tensor("visible", visible, (tokens,), integers, like=q)
    requests, pages = page_tables.shape
    if requests == 0 or tokens % requests:
        raise ValueError(f"q has {tokens} rows; they must be a multiple of {requests} requests")
    if page_tokens < 1 or page_tokens & (page_tokens - 1) or pages * page_tokens >= 2**31:
        raise ValueError(
            f"page_tokens is {page_tokens}; it must be a power of two that keeps "
            f"{pages} pages below 2^31 tokens"
        )
    tiles = -(-pages * page_tokens // tile.entries)
    least_per_split = tile.entries
    if batch_invariant:
        if splits is not None:
            raise ValueError(f"splits is {splits}; with batch_invariant it must be None")
        splits = max(1, -(-pages * page_tokens // INVARIANT_SPLIT_POSITIONS))
        least_per_split = INVARIANT_SPLIT_POSITIONS
    else:
        if splits is None:
            ctas = tokens * (heads // tile.heads)
            splits = choose_splits(ctas, tiles, tile.ctas_per_sm * device_sms(q.device))
        check_choice("splits", splits, SPLITS)

    def launch(some: slice, averages: Tensor, lse: Tensor) -> None:
        dense_mla_kernel[((some.stop - some.start) * splits * (heads // tile.heads),)](
            q[some],
            cache,
            page_tables,
            visible[some],
            averages,
            lse,
            scale * LOG2_E,
            some.start,
            tokens // requests,
            least_per_split,
            splits,
            q.stride(0),
            q.stride(1),
            page_tables.stride(0),
            **rows._asdict(),
            H=heads,
            PAGE=page_tokens,
            BLOCK_H=tile.heads,
            BLOCK_K=tile.entries,
            PARTIAL=splits > 1,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )

    return attend_in_splits(launch, q, latent, splits, out_dtype)


def _specialisation(heads: int, tile: Tile, *, fp8: bool, partial: bool) -> Specialisation:
    aligned = ("least_per_split", "q_token_stride", "q_head_stride")
    integers = (*aligned, "page_tables_stride")
    # One row a request, the first launch, an undivided row: 1 is a constant to the compiler.
    varying = {"splits": "i32"} if partial else {}
    fixed = {"rows_per_request": 1} if partial else {"rows_per_request": 1, "splits": 1}
    return Specialisation(
        name=f"{'fp8' if fp8 else 'bf16'} h{heads}{' partial' if partial else ''}",
        kernel=dense_mla_kernel,
        signature={
            "q": "*bf16",
            "cache": "*u8" if fp8 else "*bf16",
            "page_tables": "*i32",
            "visible": "*i32",
            "out": "*fp32" if partial else "*bf16",
            "lse": "*fp32",
            "scale_log2": "fp32",
            "first_row": "i32",
            **dict.fromkeys(integers, "i32"),
            **varying,
        },
        constants={
            **rows_constants(fp8=fp8),
            "H": heads,
            "PAGE": 64,
            "BLOCK_H": tile.heads,
            "BLOCK_K": tile.entries,
            "PARTIAL": partial,
            **fixed,
        },
        aligned=("q", "cache", "page_tables", "visible", "out", "lse", "first_row", *aligned),
        warps=tile.warps,
        stages=tile.stages,
        budget=attention_budget(tile),
    )


SPECIALISATIONS = tuple(
    _specialisation(heads, tile, fp8=tiles is FP8_TILES, partial=partial)
    for tiles in (FP8_TILES, BFLOAT16_TILES)
    for heads, tile in tiles.items()
    for partial in (False, True)
)

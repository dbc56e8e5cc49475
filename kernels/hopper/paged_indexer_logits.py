# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The lightning indexer's scores in decode: FP8 keys where they lie in the cache, by page.

As in kernels.hopper.indexer_logits, with all query rows of a request in one tile, so that a key is
read once for all of them. Every program gets an equal share of all requests' keys, wherever that
begins and ends; no score depends on another, so the shares change no bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.hopper.arguments import check_choice, check_tensor
from kernels.hopper.index_key_writer import check_pages
from kernels.hopper.indexer_logits import (
    BLOCK_KEYS,
    HEADS,
    WARPS,
    WIDTHS,
    check_contiguous,
    empty_logits,
    processors,
    weighted_relu_sum,
)
from kernels.hopper.specialisation import Budget, Specialisation

ROWS = (1, 2, 3, 4)
STAGES = 3
LEAST_COLUMNS = 16
"""Of a product's columns, rows times heads: with 8 the compiler takes no FP8 wgmma."""
CTAS_PER_SM = 4
"""What the launch aims at: enough bytes in flight to keep the memory busy."""


@triton.jit(do_not_specialize=["requests"])
def paged_schedule_kernel(
    visible,
    schedule,
    requests,
    ROWS: tl.constexpr,
    ROWS_POW2: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    # Program p finds where the p-th equal share of all requests' tiles begins.
    programs = tl.num_programs(0) - 1
    row = tl.arange(0, ROWS_POW2)
    total = 0
    for at in range(0, requests, BLOCK_B):
        b = at + tl.arange(0, BLOCK_B)
        inside = (b < requests)[:, None] & (row < ROWS)[None, :]
        seen = tl.load(visible + b[:, None] * ROWS + row[None, :], mask=inside, other=0)
        total += tl.sum(tl.cdiv(tl.maximum(tl.max(seen, axis=1), 0), BLOCK_K), axis=0)
    target = tl.minimum(tl.program_id(0) * tl.cdiv(total, programs), total)
    request, begin, passed = 0, 0, 0
    for at in range(0, requests, BLOCK_B):
        b = at + tl.arange(0, BLOCK_B)
        inside = (b < requests)[:, None] & (row < ROWS)[None, :]
        seen = tl.load(visible + b[:, None] * ROWS + row[None, :], mask=inside, other=0)
        tiles = tl.cdiv(tl.maximum(tl.max(seen, axis=1), 0), BLOCK_K)
        stop = passed + tl.cumsum(tiles, axis=0)
        before = (b < requests) & (stop <= target)
        request += tl.sum(before.to(tl.int32), axis=0)
        begin = tl.maximum(begin, tl.max(tl.where(before, stop, 0), axis=0))
        passed += tl.sum(tiles, axis=0)
    tl.store(schedule + tl.program_id(0) * 2, request)
    tl.store(schedule + tl.program_id(0) * 2 + 1, target - begin)


@triton.jit(do_not_specialize=["width", "pages", "tables_stride"])
def paged_logits_kernel(
    queries,
    page_values,
    page_scales,
    weights,
    visible,
    block_tables,
    schedule,
    logits,
    width,
    pages,
    values_stride,
    scales_stride,
    tables_stride,
    logits_stride,
    J: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    ROWS: tl.constexpr,
    ROWS_POW2: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    share = schedule + tl.program_id(0) * 2
    request, tile = tl.load(share), tl.load(share + 1)
    last_request, last_tile = tl.load(share + 2), tl.load(share + 3)
    column = tl.arange(0, ROWS_POW2 * J)
    row = tl.arange(0, ROWS_POW2)
    channel = tl.arange(0, D)
    while (request < last_request) | ((request == last_request) & (tile < last_tile)):
        # int64: requests times rows times heads times width may pass 2^31.
        first_row = request.to(tl.int64) * ROWS
        present = column < ROWS * J
        q = tl.load(
            queries + (first_row * J + column)[:, None] * D + channel[None, :],
            mask=present[:, None],
            other=0.0,
        )
        w = tl.load(weights + first_row * J + column, mask=present, other=0.0)
        seen = tl.load(visible + first_row + row, mask=row < ROWS, other=0)
        seen = tl.minimum(seen, width)
        longest = tl.max(seen, axis=0)
        end = longest
        if request == last_request:
            end = tl.minimum(longest, last_tile * BLOCK_K)
        table = block_tables + request.to(tl.int64) * tables_stride
        out = logits + (first_row + row) * logits_stride
        for at in tl.range(tile * BLOCK_K, end, BLOCK_K, num_stages=STAGES):
            s = at + tl.arange(0, BLOCK_K)
            page = tl.load(table + s // PAGE, mask=s < longest, other=0)
            page = tl.minimum(tl.maximum(page, 0), pages - 1).to(tl.int64)
            offset = s % PAGE
            k = tl.load(
                page_values + (page * values_stride + offset * D)[:, None] + channel[None, :]
            )
            scale = tl.load(page_scales + page * scales_stride + PAGE * D // 4 + offset)
            products = tl.dot(k, tl.trans(q))
            score = weighted_relu_sum(products, w, ROWS_POW2, J) * scale[:, None]
            tl.store(out[None, :] + s[:, None], score, mask=s[:, None] < seen[None, :])
        request += 1
        tile = 0


def paged_schedule(visible: Tensor) -> Tensor:
    """Returns the schedule of `paged_logits` for rows that see visible [B, N] int32 keys.

    int32 [programs + 1, 2]: the request and its tile of keys at which each program begins. All
    requests' tiles are dealt out evenly. It serves every layer of a step; computed on the device,
    so that a CUDA graph may hold it.
    """
    check_tensor("visible", visible, (None, None), (torch.int32,))
    check_contiguous(visible=visible)
    requests, rows = visible.shape
    programs = CTAS_PER_SM * processors(visible)
    schedule = torch.empty(programs + 1, 2, dtype=torch.int32, device=visible.device)
    paged_schedule_kernel[(programs + 1,)](
        visible,
        schedule,
        requests,
        ROWS=rows,
        ROWS_POW2=triton.next_power_of_2(rows),
        BLOCK_K=block_keys(rows),
        BLOCK_B=256,
        num_warps=1,
    )
    return schedule


def paged_logits(
    queries: Tensor,
    pages: Tensor,
    weights: Tensor,
    visible: Tensor,
    block_tables: Tensor,
    width: int,
    *,
    page_tokens: int,
    schedule: Tensor | None = None,
    fill: float | None = None,
) -> Tensor:
    """Returns the index scores [B * N, width] float32 of N query rows of each of B requests.

    queries [B, N, J, D] e4m3 and weights [B, N, J] float32 with the queries' scales in them, both
    contiguous; pages [P, page_tokens * (D + 4)] uint8, FP8 index keys in the layout of
    kernels.cache; block_tables [B, most pages] int32: a request's pages in order; visible [B, N]
    int32: row n sees positions below visible[b, n]. Keys are read once for all rows of a request.
    Columns past a row's visible ones are undefined, or `fill`. schedule: `paged_schedule(visible)`.
    Rows are padded to 1,024 bytes: use the result's stride.
    Raises ValueError for what the kernel does not support.
    Source: DeepSeek-V3.2 report, eq. 1; the paged form of DeepGEMM.
    """
    check_tensor("queries", queries, (None, None, None, None), (torch.float8_e4m3fn,))
    requests, rows, heads, index_width = queries.shape
    check_choice("the number of index heads", heads, HEADS)
    check_choice("the index width", index_width, WIDTHS)
    check_choice("the number of query rows a request", rows, ROWS)
    check_pages(pages, index_width, page_tokens, like=queries)
    check_tensor("weights", weights, (requests, rows, heads), (torch.float32,), like=queries)
    check_tensor("visible", visible, (requests, rows), (torch.int32,), like=queries)
    check_tensor("block_tables", block_tables, (requests, None), (torch.int32,), like=queries)
    check_contiguous(queries=queries, weights=weights, visible=visible)
    if width > block_tables.shape[1] * page_tokens:
        raise ValueError(
            f"width is {width}; block_tables name {block_tables.shape[1]} pages, "
            f"at most {block_tables.shape[1] * page_tokens} keys"
        )
    if schedule is None:
        schedule = paged_schedule(visible)
    check_tensor("schedule", schedule, (None, 2), (torch.int32,), like=queries)
    logits = empty_logits(requests * rows, width, fill, queries)
    if requests:
        values, scales = pages.view(torch.float8_e4m3fn), pages.view(torch.float32)
        paged_logits_kernel[(schedule.shape[0] - 1,)](
            queries,
            values,
            scales,
            weights,
            visible,
            block_tables,
            schedule,
            logits,
            width,
            pages.shape[0],
            values.stride(0),
            scales.stride(0),
            block_tables.stride(0),
            logits.stride(0),
            J=heads,
            D=index_width,
            PAGE=page_tokens,
            ROWS=rows,
            ROWS_POW2=max(triton.next_power_of_2(rows), LEAST_COLUMNS // heads),
            BLOCK_K=block_keys(rows),
            STAGES=STAGES,
            num_warps=WARPS,
        )
    return logits


def block_keys(rows: int) -> int:
    """Returns the keys of a paged tile: the scores per head must leave registers for the rest."""
    return BLOCK_KEYS if rows <= 2 else BLOCK_KEYS // 2


def _paged(name: str, rows: int, *, ctas: int) -> Specialisation:
    eight_bit = ("queries", "page_values")
    floats = ("page_scales", "weights", "logits")
    integers = ("visible", "block_tables", "schedule")
    strides = ("values_stride", "scales_stride", "logits_stride")
    return Specialisation(
        name=name,
        kernel=paged_logits_kernel,
        signature={
            **dict.fromkeys(eight_bit, "*fp8e4nv"),
            **dict.fromkeys(floats, "*fp32"),
            **dict.fromkeys(integers, "*i32"),
            **dict.fromkeys(("width", "pages", "tables_stride", *strides), "i32"),
        },
        constants={
            "J": 64,
            "D": 128,
            "PAGE": 64,
            "ROWS": rows,
            "ROWS_POW2": triton.next_power_of_2(rows),
            "BLOCK_K": block_keys(rows),
            "STAGES": STAGES,
        },
        aligned=(*eight_bit, *floats, *integers, *strides),
        warps=WARPS,
        stages=STAGES,
        budget=Budget(
            registers=65_536 // (ctas * WARPS * 32),
            shared_bytes=224 * 1024 // ctas,
            ctas_per_sm=ctas,
            mma="QGMMA",
        ),
    )


SPECIALISATIONS = (
    _paged("1_row", 1, ctas=4),
    _paged("2_rows", 2, ctas=2),
    _paged("4_rows", 4, ctas=2),
)

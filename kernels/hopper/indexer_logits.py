# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The lightning indexer's scores in prefill, from FP8 queries and keys.

Ragged: the keys of all sequences lie one after another, and each query row has a range of them.
(kernels.hopper.paged_indexer_logits scores decode rows.) The product is S^T = K Q^T: keys on the M
side of wgmma, queries times heads on the N side, so that the ReLU, the head weights and the sum
over heads stay within a thread and its three neighbours. It spans the whole index width, at most
128, in one go, because the 8-bit units keep some 14 bits of a running sum.

Scores do not depend on one another: how keys are dealt out among programs changes no bit. Nothing
is stored outside a row's range; what reads the scores must know their number.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.hopper.arguments import check_choice, check_tensor
from kernels.hopper.index_key_writer import check_pages
from kernels.hopper.specialisation import Budget, Specialisation

HEADS = (8, 16, 32, 64)
WIDTHS = (32, 64, 128)
BLOCK_KEYS = 128
"""Keys of a tile: two wgmma of 64 a warpgroup, or two pages."""
TILE_COLUMNS = 128
"""Queries times heads of a prefill tile: the accumulator is half of the registers."""
WARPS = 4
STAGES = 3
CTAS_PER_SM = 4
"""Programs that few rows are dealt out to; an SM holds 2, one's epilogue covering the other's
products."""
ROW_ALIGNMENT = 256
"""Scores a row of the output is padded to: 1,024 bytes."""


@triton.jit
def weighted_relu_sum(products, weights, ROWS: tl.constexpr, J: tl.constexpr):
    """Returns [keys, ROWS] from products [keys, ROWS * J] and weights [ROWS * J]."""
    weighted = tl.maximum(products, 0.0) * weights[None, :]
    return tl.sum(tl.reshape(weighted, [products.shape[0], ROWS, J]), axis=2)


@triton.jit(do_not_specialize=["tokens", "context", "width"])
def prefill_logits_kernel(
    queries,
    keys,
    key_scales,
    weights,
    starts,
    ends,
    logits,
    tokens,
    context,
    width,
    logits_stride,
    J: tl.constexpr,
    D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    # The last rows of a prompt see the most keys: they go first.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    column = block.to(tl.int64) * (BLOCK_Q * J) + tl.arange(0, BLOCK_Q * J)
    channel = tl.arange(0, D)
    present = column < tokens.to(tl.int64) * J
    q = tl.load(queries + column[:, None] * D + channel[None, :], mask=present[:, None], other=0.0)
    w = tl.load(weights + column, mask=present, other=0.0)

    row = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    start = tl.load(starts + row, mask=row < tokens, other=context)
    end = tl.load(ends + row, mask=row < tokens, other=0)
    end = tl.minimum(tl.minimum(end, start + width), context)
    # A row that sees nothing, such as padding, must not stretch the keys of its neighbours.
    first = tl.maximum(tl.min(tl.where(start < end, start, context), axis=0), 0)
    last = tl.max(end, axis=0)
    share = tl.cdiv(tl.cdiv(last - first, BLOCK_K), tl.num_programs(1)) * BLOCK_K
    first += tl.program_id(1) * share
    last = tl.minimum(last, first + share)
    out = logits + row.to(tl.int64) * logits_stride - start
    for at in tl.range(first, last, BLOCK_K, num_stages=STAGES):
        s = at + tl.arange(0, BLOCK_K)
        # Past the end the last key is read again; its score is not stored.
        source = tl.minimum(s, context - 1).to(tl.int64)
        k = tl.load(keys + source[:, None] * D + channel[None, :])
        scale = tl.load(key_scales + source)
        score = weighted_relu_sum(tl.dot(k, tl.trans(q)), w, BLOCK_Q, J) * scale[:, None]
        seen = (s[:, None] >= start[None, :]) & (s[:, None] < end[None, :])
        tl.store(out[None, :] + s[:, None], score, mask=seen)


@triton.jit(do_not_specialize=["pages", "tables_stride"])
def gather_keys_kernel(
    page_values,
    page_scales,
    block_tables,
    offsets,
    keys,
    key_scales,
    pages,
    values_stride,
    scales_stride,
    tables_stride,
    D: tl.constexpr,
    PAGE: tl.constexpr,
):
    b = tl.program_id(0)
    begin, end = tl.load(offsets + b), tl.load(offsets + b + 1)
    at = tl.program_id(1) * PAGE
    if at < end - begin:
        page = tl.load(block_tables + b.to(tl.int64) * tables_stride + tl.program_id(1))
        page = tl.minimum(tl.maximum(page, 0), pages - 1).to(tl.int64)
        offset, channel = tl.arange(0, PAGE), tl.arange(0, D)
        target = begin.to(tl.int64) + at + offset
        inside = at + offset < end - begin
        source = page_values + page * values_stride + (offset * D)[:, None] + channel[None, :]
        tl.store(
            keys + target[:, None] * D + channel[None, :], tl.load(source), mask=inside[:, None]
        )
        scale = tl.load(page_scales + page * scales_stride + PAGE * D // 4 + offset)
        tl.store(key_scales + target, scale, mask=inside)


def prefill_logits(
    queries: Tensor,
    keys: Tensor,
    key_scales: Tensor,
    weights: Tensor,
    starts: Tensor,
    ends: Tensor,
    width: int,
    *,
    fill: float | None = None,
) -> Tensor:
    """Returns the index scores [T, width] float32 of T query rows, each over its range of keys.

    queries [T, J, D] and keys [L, D] e4m3, contiguous; key_scales [L] float32; weights [T, J]
    float32, contiguous, with the queries' scales in them. Row t sees keys starts[t] to ends[t] - 1
    (int32) of the keys of all sequences laid end to end; its score of key starts[t] + s stands in
    column s. width is at least the longest range. Columns past a row's range are undefined, or
    `fill`. Rows are padded to 1,024 bytes: use the result's stride.
    Raises ValueError for what the kernel does not support.
    Source: DeepSeek-V3.2 report, eq. 1; the ranges of DeepGEMM's ragged form.
    """
    check_tensor("queries", queries, (None, None, None), (torch.float8_e4m3fn,))
    tokens, heads, index_width = queries.shape
    context = keys.shape[0]
    check_choice("the number of index heads", heads, HEADS)
    check_choice("the index width", index_width, WIDTHS)
    check_tensor("keys", keys, (None, index_width), (torch.float8_e4m3fn,), like=queries)
    check_tensor("key_scales", key_scales, (context,), (torch.float32,), like=queries)
    check_tensor("weights", weights, (tokens, heads), (torch.float32,), like=queries)
    check_tensor("starts", starts, (tokens,), (torch.int32,), like=queries)
    check_tensor("ends", ends, (tokens,), (torch.int32,), like=queries)
    check_contiguous(queries=queries, keys=keys, weights=weights)
    logits = empty_logits(tokens, width, fill, queries)
    if tokens and context:
        block_queries = max(1, TILE_COLUMNS // heads)
        blocks = triton.cdiv(tokens, block_queries)
        # Few rows do not fill the machine: then several programs share a row's keys.
        most = triton.cdiv(context, 4 * BLOCK_KEYS)
        splits = max(1, min(most, CTAS_PER_SM * processors(queries) // blocks))
        prefill_logits_kernel[(blocks, splits)](
            queries,
            keys,
            key_scales,
            weights,
            starts,
            ends,
            logits,
            tokens,
            context,
            width,
            logits.stride(0),
            J=heads,
            D=index_width,
            BLOCK_Q=block_queries,
            BLOCK_K=BLOCK_KEYS,
            STAGES=STAGES,
            num_warps=WARPS,
        )
    return logits


def gather_index_keys(
    pages: Tensor,
    block_tables: Tensor,
    offsets: Tensor,
    total: int,
    *,
    width: int,
    page_tokens: int,
) -> tuple[Tensor, Tensor]:
    """Returns the keys [total, D] e4m3 and scales [total] float32 of B sequences laid end to end.

    pages and block_tables as in `paged_logits`; offsets [B + 1] int32: where each sequence begins,
    total at the end. What prefill reads many times it reads from here, in long straight runs.
    """
    check_pages(pages, width, page_tokens, like=pages)
    requests = block_tables.shape[0]
    check_tensor("block_tables", block_tables, (None, None), (torch.int32,), like=pages)
    check_tensor("offsets", offsets, (requests + 1,), (torch.int32,), like=pages)
    values, scales = pages.view(torch.float8_e4m3fn), pages.view(torch.float32)
    keys = torch.empty(total, width, dtype=torch.float8_e4m3fn, device=pages.device)
    key_scales = torch.empty(total, dtype=torch.float32, device=pages.device)
    if total:
        gather_keys_kernel[(requests, block_tables.shape[1])](
            values,
            scales,
            block_tables,
            offsets,
            keys,
            key_scales,
            pages.shape[0],
            values.stride(0),
            scales.stride(0),
            block_tables.stride(0),
            D=width,
            PAGE=page_tokens,
            num_warps=WARPS,
        )
    return keys, key_scales


def processors(tensor: Tensor) -> int:
    """Returns the SMs of a tensor's device; 1 in the interpreter."""
    if tensor.device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count


def empty_logits(rows: int, width: int, fill: float | None, like: Tensor) -> Tensor:
    """Returns [rows, width] float32, its rows padded, holding `fill` or nothing yet."""
    stride = triton.cdiv(max(width, 1), ROW_ALIGNMENT) * ROW_ALIGNMENT
    whole = torch.empty(rows, stride, dtype=torch.float32, device=like.device)
    if fill is not None:
        whole.fill_(fill)
    return whole[:, :width]


def check_contiguous(**tensors: Tensor) -> None:
    """Raises ValueError unless all are contiguous."""
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise ValueError(f"{name} has strides {tensor.stride()}; it must be contiguous")


def _prefill(name: str, heads: int) -> Specialisation:
    return Specialisation(
        name=name,
        kernel=prefill_logits_kernel,
        signature={
            "queries": "*fp8e4nv",
            "keys": "*fp8e4nv",
            **dict.fromkeys(("key_scales", "weights", "logits"), "*fp32"),
            **dict.fromkeys(("starts", "ends"), "*i32"),
            **dict.fromkeys(("tokens", "context", "width", "logits_stride"), "i32"),
        },
        constants={
            "J": heads,
            "D": 128,
            "BLOCK_Q": TILE_COLUMNS // heads,
            "BLOCK_K": BLOCK_KEYS,
            "STAGES": STAGES,
        },
        aligned=(
            "queries",
            "keys",
            "key_scales",
            "weights",
            "starts",
            "ends",
            "logits",
            "logits_stride",
        ),
        warps=WARPS,
        stages=STAGES,
        budget=Budget(registers=255, shared_bytes=100 * 1024, ctas_per_sm=2, mma="QGMMA"),
    )


SPECIALISATIONS = (
    _prefill("64_heads", 64),
    _prefill("32_heads", 32),
)

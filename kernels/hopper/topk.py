# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Exact top-k of index scores, ascending, ties to the lowest position, as cache slots.

How a row of n visible scores is taken:

    n <= k       the positions 0, 1, ...: its scores are not read
    n <= TILE    held in registers, read once
    longer       a sample gives a threshold that about sqrt(k * TILE) scores reach; the row is read
                 once; what reaches the threshold goes to scratch, in order, and from there into
                 registers
    misled       by the sample: fewer than k or more than TILE reached the threshold (thousands of
                 equal scores, say). The row is read again and again; slow, and as exact

In registers the k-th largest is searched for by counting (kernels.hopper.selection); one prefix
sum then places what is chosen, in order. Many rows: a program each. Few long rows: three kernels,
so that many programs read one row. Nothing is decided by an order of arrival, and the result is
the one exact answer, whatever else is in the batch and whichever way it was found.

The interpreter runs a program as one thread: it does not reach the barriers between what a
program's threads store to scratch and what others of them load from it.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.hopper.arguments import check_tensor
from kernels.hopper.indexer_logits import processors
from kernels.hopper.selection import (
    LOWEST_KEY,
    NO_KEY,
    narrowed,
    narrowed_by_reading,
    row_keys,
    sampled_threshold,
    store_chosen,
)
from kernels.hopper.specialisation import Budget, Specialisation
from kernels.hopper.topk_split import (
    BLOCK,
    CHUNK,
    RUN,
    TILE,
    VECTOR,
    WARPS,
    filter_kernel,
    pack_kept,
    threshold_kernel,
)

SPLIT_WARPS = 16
"""Of the program that ends a split row: it is alone with it."""
CTAS_PER_SM = 2
MAX_REGISTERS = 128
"""Left alone, the compiler takes what it finds, and one program fills an SM."""
WORKSPACE_BYTES = 128 * 2**20
"""Scratch of a launch: more rows take several launches."""


@triton.jit(do_not_specialize=["width", "first_row", "rows_per_request", "tables_stride"])
def top_k_kernel(
    scores,
    visible,
    requests,
    block_tables,
    out,
    thresholds_in,
    kept_positions,
    kept_counts,
    width,
    first_row,
    rows_per_request,
    scores_stride,
    tables_stride,
    out_stride,
    kept_stride,
    counts_stride,
    K: tl.constexpr,
    K_POW2: tl.constexpr,
    PAGE: tl.constexpr,
    TARGET: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    RUN: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    VECTOR: tl.constexpr,
    SPLIT: tl.constexpr,
):
    # CHUNKS, a power of two, at least cdiv(width, CHUNK); SPLIT: filter_kernel has run.
    i = tl.arange(0, TILE)
    # The last rows of a prompt are the longest: they go first.
    r = tl.num_programs(0) - 1 - tl.program_id(0)
    wide_r = r.to(tl.int64)
    n = tl.minimum(tl.load(visible + r).to(tl.int32), width)
    row = scores + wide_r * scores_stride
    out_row = out + wide_r * out_stride
    table = block_tables
    if PAGE > 0:
        if requests is not None:
            request = tl.load(requests + r).to(tl.int64)
        else:
            request = (first_row + wide_r) // rows_per_request
        table = block_tables + request * tables_stride
    guess = wide_r * 0 + LOWEST_KEY
    if n <= K:
        rank = tl.arange(0, K_POW2)
        place = rank
        if PAGE > 0:
            page = tl.load(table + rank // PAGE, mask=rank < n, other=0)
            place = page * PAGE + rank % PAGE
        tl.store(out_row + rank, tl.where(rank < n, place, -1), mask=rank < K)
    elif n <= TILE:
        keys = row_keys(row, i, n, VECTOR)
        low, high, reach_high = narrowed(keys, guess, K, K)
        store_chosen(
            row, None, None, n, low, high, reach_high, out_row, table,
            K, K_POW2, PAGE, BLOCK // 2, VECTOR,
        )  # fmt: skip
    else:
        kept = kept_positions + wide_r * kept_stride
        if SPLIT:
            kept_keys = kept + kept_stride // 2
            counts = kept_counts + wide_r * counts_stride
            guess = tl.load(thresholds_in + r).to(tl.int64)
            reached = pack_kept(kept, kept_keys, counts, tl.cdiv(n, CHUNK), CHUNK, TILE, CHUNKS)
        else:
            kept_keys = kept + TILE
            guess = sampled_threshold(row, n, TARGET, BLOCK, RUN)
            key = guess.to(tl.int32)
            reached = n * 0
            for at in tl.range(0, n, BLOCK, num_stages=3):
                positions = at + tl.arange(0, BLOCK)
                keys = row_keys(row, positions, n, VECTOR)
                keep = keys >= key
                running = reached + tl.cumsum(keep.to(tl.int32), axis=0)
                target = kept + running - 1
                tl.store(target, positions, mask=keep & (running <= TILE))
                tl.store(target + TILE, keys, mask=keep & (running <= TILE))
                reached += tl.sum(keep.to(tl.int32), axis=0)
            tl.debug_barrier()
        if (reached >= K) & (reached <= TILE):
            keys = tl.load(kept_keys + i, mask=i < reached, other=NO_KEY)
            low, high, reach_high = narrowed(keys, guess, K, K)
            store_chosen(
                row, kept, kept_keys, reached, low, high, reach_high, out_row, table,
                K, K_POW2, PAGE, BLOCK // 2, VECTOR,
            )  # fmt: skip
        else:
            low, high, reach_high = narrowed_by_reading(row, n, guess, reached, K, BLOCK, VECTOR)
            store_chosen(
                row, None, None, n, low, high, reach_high, out_row, table,
                K, K_POW2, PAGE, BLOCK // 2, VECTOR,
            )  # fmt: skip


def top_k_slots(
    scores: Tensor,
    visible: Tensor,
    k: int,
    *,
    block_tables: Tensor | None = None,
    requests: Tensor | None = None,
    page_tokens: int = 64,
    split: bool | None = None,
    tile: int = TILE,
) -> Tensor:
    """Returns the k best positions of each row as int32 [T, k], ascending, then -1.

    scores [T, L] float32 with any row stride; visible [T] int32: row t has visible[t] <= L scores,
    what stands after them is not read. Ties go to the lowest position; -inf and NaN are never
    chosen, but a row of at most k scores gives its positions 0, 1, ... without reading them.
    With block_tables [B, most pages] int32 the positions come as cache slots,
    page * page_tokens + offset, of the pages of request requests[t] (int32 [T]; None: T / B rows
    each, in order). split: many programs a row (None: where few rows would not fill the machine);
    tile: keys held in registers; neither changes the result.
    Raises ValueError for what the kernels do not support.
    Source: DeepSeek-V3.2 report, section 2 (fine-grained token selection).
    """
    check_tensor("scores", scores, (None, None), (torch.float32,))
    rows, width = scores.shape
    check_tensor("visible", visible, (rows,), (torch.int32,), like=scores)
    if tile & (tile - 1) or not 64 <= tile <= 2 * TILE:
        raise ValueError(f"tile is {tile}; it must be a power of two from 64 to {2 * TILE}")
    if not 1 <= k <= tile // 2:
        raise ValueError(f"k is {k}; with tiles of {tile} it must be from 1 to {tile // 2}")
    if width >= 2**21:
        raise ValueError(f"scores have {width} columns; at most {2**21 - 1} are supported")
    rows_per_request = 1
    if block_tables is not None:
        if page_tokens < 1 or page_tokens & (page_tokens - 1):
            raise ValueError(f"page_tokens is {page_tokens}; it must be a power of two")
        check_tensor("block_tables", block_tables, (None, None), (torch.int32,), like=scores)
        if requests is not None:
            check_tensor("requests", requests, (rows,), (torch.int32,), like=scores)
        elif block_tables.shape[0] == 0 or rows % block_tables.shape[0]:
            raise ValueError(
                f"scores have {rows} rows for {block_tables.shape[0]} block_tables; "
                "without `requests` each has the same number"
            )
        else:
            rows_per_request = max(1, rows // block_tables.shape[0])
    out = torch.empty(rows, k, dtype=torch.int32, device=scores.device)
    if rows == 0:
        return out
    resident = CTAS_PER_SM * processors(scores)
    if split is None:
        split = width > tile and rows < resident
    row_bytes = 8 * _kept_scores(width, tile, split=split)
    step = max(1, WORKSPACE_BYTES // row_bytes) if row_bytes else rows
    if not split:  # whole waves
        step = max(1, step // resident) * resident
    for begin in range(0, rows, step):
        part = slice(begin, begin + step)
        _launch(
            scores[part],
            visible[part],
            None if requests is None else requests[part],
            block_tables,
            out[part],
            page_tokens=page_tokens,
            first_row=begin,
            rows_per_request=rows_per_request,
            tile=tile,
            split=split,
        )
    return out


def _launch(
    scores: Tensor,
    visible: Tensor,
    requests: Tensor | None,
    block_tables: Tensor | None,
    out: Tensor,
    *,
    page_tokens: int,
    first_row: int,
    rows_per_request: int,
    tile: int,
    split: bool,
) -> None:
    """Fills out [T, k] for rows whose scratch fits the workspace."""
    (rows, width), k = scores.shape, out.shape[1]
    chunk = tile * CHUNK // TILE
    chunks = triton.cdiv(width, chunk)
    sampling = {
        "TARGET": math.isqrt(k * tile),
        "TILE": tile,
        "BLOCK": tile * BLOCK // TILE,
        "RUN": RUN,
    }
    filtering = {"TILE": tile, "CHUNK": chunk, "VECTOR": _vector(scores)}
    kept = visible.new_empty(rows, 2, _kept_scores(width, tile, split=split))
    counts = visible.new_empty(rows, triton.next_power_of_2(chunks) if split else 1)
    found = visible.new_empty(rows)
    if split and width > tile:
        threshold_kernel[(rows,)](
            scores, visible, found, scores.stride(0), width, **sampling, num_warps=WARPS
        )
        filter_kernel[(rows, chunks)](
            scores,
            visible,
            found,
            kept,
            counts,
            scores.stride(0),
            kept.stride(0),
            counts.stride(0),
            width,
            **filtering,
            num_warps=WARPS,
        )
    top_k_kernel[(rows,)](
        scores,
        visible,
        requests,
        block_tables,
        out,
        found,
        kept,
        counts,
        width,
        first_row,
        rows_per_request,
        scores.stride(0),
        0 if block_tables is None else block_tables.stride(0),
        out.stride(0),
        kept.stride(0),
        counts.stride(0),
        K=k,
        K_POW2=triton.next_power_of_2(k),
        PAGE=0 if block_tables is None else page_tokens,
        CHUNKS=counts.shape[1],
        SPLIT=split,
        **(sampling | filtering),
        num_warps=SPLIT_WARPS if split else WARPS,
        maxnreg=MAX_REGISTERS,
    )


def _kept_scores(width: int, tile: int, *, split: bool) -> int:
    """Returns for how many positions and keys of a row scratch must have room.

    Programs that share a row may keep all of it; one alone stops when a tile is full.
    """
    if width <= tile:
        return 0
    chunk = tile * CHUNK // TILE
    return triton.cdiv(width, chunk) * chunk if split else tile


def _vector(scores: Tensor) -> int:
    """How many scores may be loaded at once: VECTOR if every row is padded to a multiple of it."""
    rows, width = scores.shape
    padded = triton.cdiv(width, VECTOR) * VECTOR
    last = scores.storage_offset() + (rows - 1) * scores.stride(0) + padded
    fits = last * scores.element_size() <= scores.untyped_storage().nbytes()
    return VECTOR if fits and scores.stride(0) % VECTOR == 0 else 1


def _specialisation(name: str, *, split: bool) -> Specialisation:
    pointers = (
        "scores", "visible", "block_tables", "out", "thresholds_in", "kept_positions",
        "kept_counts",
    )  # fmt: skip
    scalars = (
        "width", "first_row", "rows_per_request", "scores_stride", "tables_stride", "out_stride",
        "kept_stride", "counts_stride",
    )  # fmt: skip
    return Specialisation(
        name=name,
        kernel=top_k_kernel,
        signature={
            "scores": "*fp32",
            **dict.fromkeys(pointers[1:], "*i32"),
            **({} if split else {"requests": "*i32"}),
            **dict.fromkeys(scalars, "i32"),
        },
        constants={
            "K": 2048,
            "K_POW2": 2048,
            "PAGE": 64,
            "TARGET": 4096,
            "TILE": TILE,
            "BLOCK": BLOCK,
            "RUN": RUN,
            "CHUNK": CHUNK,
            "CHUNKS": 128 if split else 1,
            "VECTOR": VECTOR,
            "SPLIT": split,
            **({"requests": None} if split else {}),
        },
        aligned=(*pointers, "scores_stride", "out_stride", "kept_stride", "counts_stride"),
        warps=SPLIT_WARPS if split else WARPS,
        stages=3,
        budget=Budget(
            registers=128,
            shared_bytes=64 * 1024,
            ctas_per_sm=1 if split else CTAS_PER_SM,
            mma=None,
        ),
        options={"maxnreg": MAX_REGISTERS},
    )


SPECIALISATIONS = (
    _specialisation("prefill", split=False),
    _specialisation("decode", split=True),
)

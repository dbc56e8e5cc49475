"""Cases of the lightning indexer: scores in prefill and decode, and the top-k of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels.bench.case import (
    INDEX_HEADS,
    INDEX_KEY_BYTES,
    INDEX_WIDTH,
    LAYERS,
    PAGE_TOKENS,
    TOP_K,
    Case,
    Place,
    Prepared,
    Work,
    difference,
    normal,
    powers_of_two,
    random_fp8,
    some_rows,
)
from kernels.hopper.indexer_logits import prefill_logits
from kernels.hopper.paged_indexer_logits import paged_logits, paged_schedule
from kernels.hopper.topk import top_k_slots
from kernels.topk import positions_of, select_top_k

TOLERANCE = 5e-6
"""Inputs are exact, products are added in float32 or with 14 bits."""
CHUNK = 8192
ROWS = 64


def cases() -> Iterator[Case]:
    """Yields the cases of this file's ops."""
    for context in (8192, 16_384, 32_768, 65_536):
        place = Place("prefill", "indexer", context - CHUNK // 2, CHUNK, LAYERS)
        yield prefill_case(context, place, quick=context == 65_536)
        yield prefill_top_k_case(
            context, Place("prefill", "top_k", place.context_tokens, CHUNK, LAYERS)
        )
    for rows in (1, 8, 32):
        yield paged_case(rows, 65_536, None)
    for context in (4096, 16_384, 65_536, 131_072):
        place = Place("decode", "indexer", context, ROWS, LAYERS)
        yield paged_case(ROWS, context, place, quick=context == 65_536)
        place = Place("decode", "top_k", context, ROWS, LAYERS)
        yield decode_top_k_case(ROWS, context, place, quick=context == 65_536)


def scores_work(pairs: int, keys: int, rows: int) -> Work:
    """Of scores of `pairs` pairs; `keys` keys are read once, `rows` queries as well."""
    flops = 2 * pairs * INDEX_HEADS * INDEX_WIDTH
    query_bytes = rows * INDEX_HEADS * (INDEX_WIDTH + 4)
    return Work(flops, keys * INDEX_KEY_BYTES + pairs * 4 + query_bytes, "fp8")


def causal_pairs(tokens: int, context: int) -> int:
    """Pairs of the last `tokens` queries of a context and the keys they see."""
    return tokens * (context - tokens) + tokens * (tokens + 1) // 2


def plain_scores(q: Tensor, keys: Tensor, scales: Tensor, weights: Tensor) -> Tensor:
    """The formula in float64; q [T, J, D], keys [L, D], scales [L], weights [T, J]."""
    dots = torch.einsum("tjd,ld->tjl", q.double(), keys.double()).clamp_min(0)
    return torch.einsum("tj,tjl->tl", weights.double(), dots) * scales.double()


def prefill_case(context: int, place: Place, *, quick: bool = False) -> Case:
    """The last 8,192 tokens of a prompt of `context`."""

    def prepare(device: torch.device) -> Prepared:
        q = random_fp8(CHUNK, INDEX_HEADS, INDEX_WIDTH, device=device)
        keys = random_fp8(context, INDEX_WIDTH, device=device)
        scales = powers_of_two(context, device=device)
        weights = normal(CHUNK, INDEX_HEADS, device=device, dtype=torch.float32)
        starts = torch.zeros(CHUNK, dtype=torch.int32, device=device)
        ends = causal_ends(context, device)
        some = some_rows(CHUNK, device)

        def run() -> Tensor:
            return prefill_logits(q, keys, scales, weights, starts, ends, context)

        def error() -> float:
            chosen = q.view(torch.uint8)[some].view(q.dtype)
            plain = plain_scores(chosen, keys, scales, weights[some])
            seen = torch.arange(context, device=device) < ends[some][:, None]
            return difference(run()[some][seen], plain[seen])

        # Above the diagonal nothing is written.
        return Prepared(run, error, lambda scores: scores.tril(context - CHUNK))

    work = scores_work(causal_pairs(CHUNK, context), context, CHUNK)
    shape = f"{CHUNK} queries, {context:,} keys"
    return Case("indexer_logits", shape, work, prepare, TOLERANCE, place, quick)


def paged_case(rows: int, context: int, place: Place | None, *, quick: bool = False) -> Case:
    """One query of each request, pages shuffled."""
    pages = context // PAGE_TOKENS

    def prepare(device: torch.device) -> Prepared:
        cache = index_pages(rows * pages, device)
        q = random_fp8(rows, 1, INDEX_HEADS, INDEX_WIDTH, device=device)
        weights = normal(rows, 1, INDEX_HEADS, device=device, dtype=torch.float32)
        tables = torch.randperm(rows * pages, device=device).int().view(rows, pages)
        visible = torch.full((rows, 1), context, dtype=torch.int32, device=device)
        schedule = paged_schedule(visible)
        some = some_rows(rows, device, 4)

        def run() -> Tensor:
            return paged_logits(
                q, cache, weights, visible, tables, context,
                page_tokens=PAGE_TOKENS, schedule=schedule,
            )  # fmt: skip

        def error() -> float:
            plain = []
            for row in some.tolist():
                keys, scales = read_keys(cache[tables[row].long()])
                plain.append(plain_scores(q[row], keys, scales, weights[row]))
            return difference(run()[some], torch.cat(plain))

        return Prepared(run, error)

    work = scores_work(rows * context, rows * context, rows)
    shape = f"{rows} rows, context {context:,}"
    return Case("paged_indexer_logits", shape, work, prepare, TOLERANCE, place, quick)


def top_k_work(scores: int, rows: int) -> Work:
    """Of reading every score once and writing the slots."""
    return Work(0, 4 * scores + 4 * rows * TOP_K, "none")


def prefill_top_k_case(context: int, place: Place, *, quick: bool = False) -> Case:
    """Of the last 8,192 rows of a causal matrix."""

    def prepare(device: torch.device) -> Prepared:
        scores = normal(CHUNK, context, device=device, dtype=torch.float32)
        return top_k(scores, causal_ends(context, device), device)

    work = top_k_work(causal_pairs(CHUNK, context), CHUNK)
    shape = f"{CHUNK} rows, context {context:,}"
    return Case("topk", shape, work, prepare, 0.0, place, quick)


def decode_top_k_case(rows: int, context: int, place: Place, *, quick: bool = False) -> Case:
    """Of full rows."""

    def prepare(device: torch.device) -> Prepared:
        scores = normal(rows, context, device=device, dtype=torch.float32)
        visible = torch.full((rows,), context, dtype=torch.int32, device=device)
        return top_k(scores, visible, device)

    work = top_k_work(rows * context, rows)
    return Case("topk", f"{rows} rows, context {context:,}", work, prepare, 0.0, place, quick)


def top_k(scores: Tensor, visible: Tensor, device: torch.device) -> Prepared:
    """The exact set, as positions; the error is the number of wrong ones."""
    some = some_rows(scores.shape[0], device)

    def run() -> Tensor:
        return top_k_slots(scores, visible, TOP_K)

    def error() -> float:
        hidden = torch.arange(scores.shape[1], device=device) >= visible[some][:, None]
        rows = scores[some].masked_fill(hidden, -torch.inf)
        expected = positions_of(select_top_k(rows, TOP_K), TOP_K)
        return float((run()[some] != expected).sum())

    return Prepared(run, error)


def causal_ends(context: int, device: torch.device) -> Tensor:
    """int32 [8192]: how many keys each of the last tokens of a context sees."""
    return torch.arange(context - CHUNK + 1, context + 1, dtype=torch.int32, device=device)


def index_pages(pages: int, device: torch.device) -> Tensor:
    """Returns FP8 index-key pages [pages, 64 * 132] of random keys and scales."""
    whole = torch.empty(pages, PAGE_TOKENS * INDEX_KEY_BYTES, dtype=torch.uint8, device=device)
    keys = random_fp8(pages, PAGE_TOKENS * INDEX_WIDTH, device=device)
    whole[:, : PAGE_TOKENS * INDEX_WIDTH] = keys.view(torch.uint8)
    scales = powers_of_two(pages, PAGE_TOKENS, device=device)
    whole[:, PAGE_TOKENS * INDEX_WIDTH :] = scales.view(torch.uint8)
    return whole


def read_keys(pages: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the keys [n * 64, D] and scales [n * 64] of pages [n, 64 * 132]."""
    values = pages[:, : PAGE_TOKENS * INDEX_WIDTH].contiguous().view(torch.float8_e4m3fn)
    scales = pages[:, PAGE_TOKENS * INDEX_WIDTH :].contiguous().view(torch.float32)
    return values.view(-1, INDEX_WIDTH), scales.flatten()

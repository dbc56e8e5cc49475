"""Cases of attention: sparse and dense over latents, dense and masked in MHA form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from kernels.bench.case import (
    HEADS,
    LATENT,
    LATENT_ROW_BYTES,
    LAYERS,
    NOPE,
    PAGE_TOKENS,
    ROPE,
    SOFTMAX_SCALE,
    TOP_K,
    VALUE,
    Case,
    Place,
    Prepared,
    Work,
    difference,
    normal,
    some_rows,
)
from kernels.dense_mla import dense_mla as plain_dense_mla
from kernels.hopper.dense_mha import dense_mha
from kernels.hopper.dense_mla import dense_mla
from kernels.hopper.latent_writer import write_latents
from kernels.hopper.selection_bitmask import selection_bitmask
from kernels.hopper.sparse_mla import sparse_mla
from kernels.hopper.split_combine import split_combine
from kernels.sparse_mla import sparse_mla as plain_sparse_mla
from kernels.split_combine import split_combine as plain_split_combine

TOLERANCE = 2e-5
"""Weights and outputs are rounded to bfloat16, each by up to 2^-9: some 5e-6 together."""


def cases() -> Iterator[Case]:
    """Yields the cases of this file's ops."""
    for heads in (128, 64, 32, 16):
        yield sparse_case(256, heads, TOP_K, 128 * 32_768, quick=heads in (128, 16))
    for entries, context in ((512, 512), (TOP_K, TOP_K), (TOP_K, 131_072)):
        place = Place("decode", "core_attention.mqa", context, 64, LAYERS)
        yield sparse_case(64, HEADS, entries, 64 * context, place=place)
    for context in (8192, 131_072):
        place = Place("prefill", "core_attention.mqa", context - 2048, 4096, LAYERS)
        yield sparse_case(4096, HEADS, TOP_K, context, place=place, quick=context == 8192)
    for context in (2048, 32_768):
        place = Place("decode", "core_attention.dense_mqa", context, 64, LAYERS)
        yield dense_case(64, HEADS, context, place=place, quick=context == 2048)
    for tokens in (2048, 4096, 8192):
        place = Place("prefill", "core_attention.mha", tokens // 2, tokens, LAYERS)
        yield mha_case(tokens, place=place, quick=tokens == 4096)
    for tokens in (4096, 6912):
        place = Place("prefill", "core_attention.masked_mha", tokens // 2, tokens, LAYERS)
        yield mha_case(tokens, selected=TOP_K, place=place)
    # These are in no table: a cache in bfloat16, and merging alone what parts of rows found.
    yield sparse_case(256, HEADS, TOP_K, 128 * 32_768, quick=True, cache_dtype="bfloat16")
    yield sparse_case(4096, HEADS, TOP_K, 8192, cache_dtype="bfloat16")
    for rows, splits in ((8, 16), (64, 4)):
        yield combine_case(rows, splits, quick=rows == 64)


def gluon_cases() -> Iterator[Case]:
    """Yields the shapes of sparse attention that the Gluon kernel is for, decode and prefill."""
    yield sparse_case(256, HEADS, TOP_K, 128 * 32_768, quick=True, kernel="gluon")
    for context in (8192, 131_072):
        yield sparse_case(4096, HEADS, TOP_K, context, kernel="gluon")


def sparse_work(
    rows: int, heads: int, entries: int, cached: int, row_bytes: int = LATENT_ROW_BYTES
) -> Work:
    """Of `rows` queries, each over `entries` of `cached` rows, a row read at least once."""
    flops = 2 * rows * heads * entries * (2 * LATENT + ROPE)
    query_bytes = rows * heads * (LATENT + ROPE) * 2
    moved = min(rows * entries, cached) * row_bytes + rows * entries * 4
    return Work(flops, moved + query_bytes + rows * heads * LATENT * 2, "bf16")


def mha_work(tokens: int) -> Work:
    """Of a causal prefill of `tokens` tokens in MHA form; what a mask drops is computed too."""
    pairs = tokens * (tokens + 1) // 2
    flops = 2 * pairs * HEADS * (NOPE + ROPE + VALUE)
    widths = HEADS * (NOPE + ROPE) + HEADS * (NOPE + VALUE) + ROPE + HEADS * VALUE
    return Work(flops, 2 * tokens * widths, "bf16")


def sparse_case(
    rows: int,
    heads: int,
    entries: int,
    cached: int,
    *,
    place: Place | None = None,
    quick: bool = False,
    kernel: Literal["triton", "gluon"] = "triton",
    cache_dtype: Literal["fp8", "bfloat16"] = "fp8",
) -> Case:
    """Lists of random slots in ascending order."""
    wide = cache_dtype == "bfloat16"

    def prepare(device: torch.device) -> Prepared:
        if wide:
            cache = normal(cached, LATENT + ROPE, device=device)
        else:
            cache = latent_cache(cached, device)
        q = normal(rows, heads, LATENT + ROPE, device=device)
        slots = torch.randint(0, cached, (rows, entries), device=device).sort(1).values.int()
        some = some_rows(rows, device)

        def run() -> Tensor:
            return sparse_mla(q, cache, slots, SOFTMAX_SCALE, latent=LATENT, kernel=kernel)[0]

        def error() -> float:
            plain = plain_sparse_mla(
                q[some].double(), cache, slots[some], SOFTMAX_SCALE, latent=LATENT
            )
            return difference(run()[some], plain[0])

        return Prepared(run, error)

    shape = f"{rows} rows, {heads} heads, {entries} of {cached:,} slots"
    if wide:
        shape += " in bfloat16"
    row_bytes = 2 * (LATENT + ROPE) if wide else LATENT_ROW_BYTES
    work = sparse_work(rows, heads, entries, cached, row_bytes)
    op = "sparse_mla_gluon" if kernel == "gluon" else "sparse_mla"
    return Case(op, shape, work, prepare, TOLERANCE, place, quick)


def combine_case(rows: int, splits: int, *, quick: bool = False) -> Case:
    """Merging the averages over parts of rows, all heads."""

    def prepare(device: torch.device) -> Prepared:
        partials = normal(rows, splits, HEADS, LATENT, device=device, dtype=torch.float32)
        lse = normal(rows, splits, HEADS, device=device, dtype=torch.float32)

        def run() -> tuple[Tensor, Tensor]:
            return split_combine(partials, lse, torch.bfloat16)

        def error() -> float:
            plain = plain_split_combine(partials.double(), lse.double(), torch.float64)
            return max(map(difference, run(), plain))

        return Prepared(run, error)

    work = Work(0, rows * HEADS * (splits * 4 * (LATENT + 1) + 2 * LATENT + 4), "none")
    return Case(
        "split_combine", f"{rows} rows, {HEADS} heads, {splits} parts", work, prepare, TOLERANCE,
        quick=quick,
    )  # fmt: skip


def dense_case(rows: int, heads: int, context: int, *, place: Place, quick: bool = False) -> Case:
    """One row of each request, pages shuffled."""
    pages = -(-context // PAGE_TOKENS)

    def prepare(device: torch.device) -> Prepared:
        cache = latent_cache(rows * pages * PAGE_TOKENS, device)
        q = normal(rows, heads, LATENT + ROPE, device=device)
        tables = torch.randperm(rows * pages, device=device).int().view(rows, pages)
        visible = torch.full((rows,), context, dtype=torch.int32, device=device)
        some = some_rows(rows, device, 2)

        def run() -> Tensor:
            return dense_mla(
                q, cache, tables, visible, SOFTMAX_SCALE, latent=LATENT, page_tokens=PAGE_TOKENS
            )[0]

        def error() -> float:
            plain = plain_dense_mla(
                q[some].double(), cache, tables[some], visible[some], SOFTMAX_SCALE,
                latent=LATENT, page_tokens=PAGE_TOKENS,
            )  # fmt: skip
            return difference(run()[some], plain[0])

        return Prepared(run, error)

    work = sparse_work(rows, heads, context, rows * context)
    shape = f"{rows} rows, {heads} heads, context {context:,}"
    return Case("dense_mla", shape, work, prepare, TOLERANCE, place, quick)


def mha_case(
    tokens: int, *, selected: int | None = None, place: Place, quick: bool = False
) -> Case:
    """One prompt from its first token; selected: so many positions of each query pass the mask."""

    def prepare(device: torch.device) -> Prepared:
        q = normal(tokens, HEADS, NOPE + ROPE, device=device)
        expanded = normal(tokens, HEADS, NOPE + VALUE, device=device)
        k_nope, v = expanded[..., :NOPE], expanded[..., NOPE:]
        k_rope = normal(tokens, ROPE, device=device)
        starts = torch.tensor([0, tokens], dtype=torch.int32, device=device)
        bits = None
        positions = torch.empty(0)
        if selected is not None:
            visible = torch.arange(1, tokens + 1, device=device)[:, None]
            positions = (torch.rand(tokens, selected, device=device) * visible).int()
            bits = selection_bitmask(positions, tokens)
        some, head = some_rows(tokens, device), HEADS - 1

        def run() -> Tensor:
            return dense_mha(
                q, k_nope, k_rope, v, starts, starts, SOFTMAX_SCALE,
                max_query_tokens=tokens, selected=bits,
            )[0]  # fmt: skip

        def error() -> float:
            keys = torch.cat((k_nope[:, head], k_rope), 1).double()
            scores = q[some, head].double() @ keys.T * SOFTMAX_SCALE
            seen = torch.arange(tokens, device=device) <= some[:, None]
            if selected is not None:
                chosen = torch.zeros_like(seen).scatter_(1, positions[some].long(), True)
                seen &= chosen
            p = scores.masked_fill(~seen, -torch.inf).softmax(1)
            return difference(run()[some, head], p @ v[:, head].double())

        return Prepared(run, error)

    shape = f"prompt of {tokens}" + ("" if selected is None else f", {selected} selected")
    return Case("dense_mha", shape, mha_work(tokens), prepare, TOLERANCE, place, quick)


def latent_cache(slots: int, device: torch.device) -> Tensor:
    """Returns FP8 latent rows [slots, 656] of normal values, as the writer writes them."""
    rows = torch.empty(slots, LATENT_ROW_BYTES, dtype=torch.uint8, device=device)
    weight = torch.ones(LATENT, device=device)
    few = min(slots, 1 << 16)
    latents, ropes = normal(few, LATENT, device=device), normal(few, ROPE, device=device)
    angles = torch.ones(few, ROPE // 2, dtype=torch.complex64, device=device)
    every = torch.arange(few, device=device)
    for begin in range(0, slots, few):
        part = rows[begin : begin + few]
        count = part.shape[0]
        write_latents(
            part, every[:count], latents[:count], ropes[:count], weight=weight, eps=1e-6,
            table=angles[:count],
        )  # fmt: skip
    return rows

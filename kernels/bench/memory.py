"""Cases of what writes the cache, rotates index queries, and samples."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels.bench.case import (
    INDEX_HEADS,
    INDEX_KEY_BYTES,
    INDEX_WIDTH,
    LATENT,
    LATENT_ROW_BYTES,
    PAGE_TOKENS,
    ROPE,
    VOCABULARY,
    Case,
    Prepared,
    Work,
    difference,
    normal,
    some_rows,
)
from kernels.bench.indexer import read_keys
from kernels.cache import latent_rows
from kernels.hadamard import hadamard
from kernels.hopper.index_key_writer import write_index_keys
from kernels.hopper.index_query import quantised_index_queries
from kernels.hopper.latent_writer import write_latents
from kernels.hopper.sampling import sample
from kernels.norm import layer_norm, rms_norm
from kernels.rope import rope_half_split, rope_interleaved, rope_table
from kernels.sampling import sample as plain_sample

TOLERANCE = 1e-3
"""A value of e4m3 is 2^-4 of itself from the next."""


def cases() -> Iterator[Case]:
    """Yields the cases of this file's ops."""
    for tokens in (4096, 64):
        yield latents_case(tokens)
        yield index_keys_case(tokens)
        yield index_queries_case(tokens)
    yield sampling_case(64)


def angles(tokens: int, device: torch.device) -> Tensor:
    """Returns the rotary table [T, R / 2] of the first positions."""
    frequencies = 10_000.0 ** (-torch.arange(ROPE // 2, device=device).double() / (ROPE // 2))
    return rope_table(frequencies, torch.arange(tokens, device=device))


def latents_case(tokens: int) -> Case:
    """FP8 latent rows from the product of the layer's input on."""

    def prepare(device: torch.device) -> Prepared:
        rows = torch.empty(tokens, LATENT_ROW_BYTES, dtype=torch.uint8, device=device)
        slots = torch.randperm(tokens, device=device)
        latents = normal(tokens, LATENT, device=device)
        ropes, table = normal(tokens, ROPE, device=device), angles(tokens, device)
        weight = torch.rand(LATENT, device=device) + 0.5

        def run() -> None:
            write_latents(rows, slots, latents, ropes, weight=weight, eps=1e-6, table=table)

        def error() -> float:
            run()
            plain = torch.cat((rms_norm(latents, weight, 1e-6), rope_interleaved(ropes, table)), 1)
            return difference(latent_rows(rows, slots, LATENT, ROPE, torch.float32), plain)

        return Prepared(run, error, lambda _: rows)

    moved = tokens * (2 * (LATENT + ROPE) + 4 * ROPE + LATENT_ROW_BYTES)
    work = Work(0, moved, "none")
    return Case("latent_writer", f"{tokens} tokens", work, prepare, TOLERANCE)


def index_keys_case(tokens: int) -> Case:
    """FP8 index keys from the product of the layer's input on."""

    def prepare(device: torch.device) -> Prepared:
        page_bytes = PAGE_TOKENS * INDEX_KEY_BYTES
        pages = torch.empty(tokens // PAGE_TOKENS, page_bytes, dtype=torch.uint8, device=device)
        slots = torch.arange(tokens, device=device)
        keys, table = normal(tokens, INDEX_WIDTH, device=device), angles(tokens, device)
        weight, bias = (torch.rand(INDEX_WIDTH, device=device) + 0.5 for _ in range(2))

        def run() -> None:
            write_index_keys(
                pages, slots, keys, weight=weight, bias=bias, eps=1e-6, table=table,
                page_tokens=PAGE_TOKENS,
            )  # fmt: skip

        def error() -> float:
            run()
            values, scales = read_keys(pages)
            x = layer_norm(keys.float(), weight, bias, 1e-6)
            turned = torch.cat((rope_half_split(x[:, :ROPE], table), x[:, ROPE:]), 1)
            return difference(values.float() * scales[:, None], hadamard(turned))

        return Prepared(run, error, lambda _: pages)

    moved = tokens * (2 * INDEX_WIDTH + 4 * ROPE + INDEX_KEY_BYTES)
    work = Work(0, moved, "none")
    return Case("index_key_writer", f"{tokens} tokens", work, prepare, TOLERANCE)


def index_queries_case(tokens: int) -> Case:
    """Rotated FP8 index queries."""

    def prepare(device: torch.device) -> Prepared:
        queries = normal(tokens, INDEX_HEADS, INDEX_WIDTH, device=device)
        weights = normal(tokens, INDEX_HEADS, device=device, dtype=torch.float32)
        table, some = angles(tokens, device), some_rows(tokens, device)

        def run() -> tuple[Tensor, Tensor]:
            return quantised_index_queries(queries, weights, table)

        def error() -> float:
            values, scaled = run()
            found = values.view(torch.uint8)[some].view(values.dtype).float()
            x = queries[some].float()
            turned = torch.cat((rope_half_split(x[..., :ROPE], table[some]), x[..., ROPE:]), -1)
            # The scale is in the head's weight.
            plain = hadamard(turned) * weights[some][..., None]
            return difference(found * scaled[some][..., None], plain)

        return Prepared(run, error)

    moved = tokens * INDEX_HEADS * (3 * INDEX_WIDTH + 8)
    work = Work(0, moved, "none")
    return Case("index_query", f"{tokens} tokens", work, prepare, TOLERANCE)


def sampling_case(rows: int) -> Case:
    """Rows with temperature, top-k and top-p; the error is the number of rows, these and greedy
    ones, that get another token than from the plain op."""

    def prepare(device: torch.device) -> Prepared:
        logits = normal(rows, VOCABULARY, device=device, dtype=torch.float32)

        def settings(temperature: float) -> tuple[Tensor, ...]:
            each = torch.ones(rows, device=device)
            seeds = torch.arange(rows, device=device)
            return (
                each * temperature, torch.full_like(seeds, 50).int(), each * 0.95, each * 0.0,
                seeds, seeds * 0, seeds,
            )  # fmt: skip

        warm, cold = settings(0.8), settings(0.0)

        def error() -> float:
            wrong = [sample(logits, *each) != plain_sample(logits, *each) for each in (warm, cold)]
            return float(torch.cat(wrong).sum())

        return Prepared(lambda: sample(logits, *warm), error)

    work = Work(0, rows * VOCABULARY * 4, "none")
    return Case("sampling", f"{rows} rows, top 50, top-p 0.95", work, prepare, 0.0)

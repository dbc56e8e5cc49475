# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""What many programs do together for the top-k of one long row, before one of them ends it.

threshold_kernel   a key that about as many scores reach as a tile can take with room to spare
filter_kernel      each part of the row: the keys that reach it, and their positions, in order
pack_kept          in the program that ends the row: what the parts kept, moved together
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.hopper.selection import NO_KEY, row_keys, sampled_threshold
from kernels.hopper.specialisation import Budget, Specialisation

TILE = 8192
"""Keys that a program holds in registers: 32 a thread with 8 warps."""
BLOCK = 4096
"""Keys that a program reads at a time from a long row, and the size of the sample."""
CHUNK = 2048
"""Scores of a long row that one program looks at where many do: 8 a thread."""
RUN = 8
"""Neighbours that a sample takes together: 32 bytes, what memory hands out anyway."""
VECTOR = 4
"""Scores loaded at once where rows are padded: 16 bytes."""
WARPS = 8


@triton.jit(do_not_specialize=["width"])
def threshold_kernel(
    scores,
    visible,
    thresholds_out,
    scores_stride,
    width,
    TARGET: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    RUN: tl.constexpr,
):
    r = tl.program_id(0)
    n = tl.minimum(tl.load(visible + r).to(tl.int32), width)
    if n > TILE:
        row = scores + r.to(tl.int64) * scores_stride
        threshold = sampled_threshold(row, n, TARGET, BLOCK, RUN)
        tl.store(thresholds_out + r, threshold.to(tl.int32))


@triton.jit(do_not_specialize=["width"])
def filter_kernel(
    scores,
    visible,
    thresholds_in,
    kept_positions,
    kept_counts,
    scores_stride,
    kept_stride,
    counts_stride,
    width,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    VECTOR: tl.constexpr,
):
    r, chunk = tl.program_id(0), tl.program_id(1)
    n = tl.minimum(tl.load(visible + r).to(tl.int32), width)
    if (n > TILE) & (chunk * CHUNK < n):
        positions = chunk * CHUNK + tl.arange(0, CHUNK)
        row = scores + r.to(tl.int64) * scores_stride
        keys = row_keys(row, positions, n, VECTOR)
        keep = keys >= tl.load(thresholds_in + r)
        running = tl.cumsum(keep.to(tl.int32), axis=0)
        target = kept_positions + r.to(tl.int64) * kept_stride + chunk * CHUNK + running - 1
        tl.store(target, positions, mask=keep)
        tl.store(target + kept_stride // 2, keys, mask=keep)
        count = tl.sum(keep.to(tl.int32), axis=0)
        tl.store(kept_counts + r.to(tl.int64) * counts_stride + chunk, count)


@triton.jit
def pack_kept(
    kept,
    kept_keys,
    counts,
    chunks,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Moves a row's kept positions and keys together, at most TILE; returns how many there are.

    counts: of each chunk, whose positions stand from CHUNK * chunk on; here they become ends.
    """
    chunk = tl.arange(0, CHUNKS)
    count = tl.load(counts + chunk, mask=chunk < chunks, other=0)
    total = tl.sum(count, axis=0)
    if total <= TILE:
        # A barrier stands wherever threads load what others have stored, or store what others load.
        tl.debug_barrier()
        tl.store(counts + chunk, tl.cumsum(count, axis=0))
        tl.debug_barrier()
        # Binary search for the first chunk that ends after i.
        i = tl.arange(0, TILE)
        found = i * 0
        for bit in tl.static_range(15):
            if CHUNKS >> (bit + 1) > 0:
                probe = found + (CHUNKS >> (bit + 1))
                found = tl.where(tl.load(counts + probe - 1) <= i, probe, found)
        start = tl.load(counts + found - 1, mask=found > 0, other=0)
        source = found * CHUNK + i - start
        positions = tl.load(kept + source, mask=i < total, other=0)
        keys = tl.load(kept_keys + source, mask=i < total, other=NO_KEY)
        tl.debug_barrier()
        tl.store(kept + i, positions, mask=i < total)
        tl.store(kept_keys + i, keys, mask=i < total)
        tl.debug_barrier()
    return total


SPECIALISATIONS = (
    Specialisation(
        name="threshold",
        kernel=threshold_kernel,
        signature={
            "scores": "*fp32",
            "visible": "*i32",
            "thresholds_out": "*i32",
            "scores_stride": "i32",
            "width": "i32",
        },
        constants={"TARGET": 4096, "TILE": TILE, "BLOCK": BLOCK, "RUN": RUN},
        aligned=("scores", "visible", "thresholds_out", "scores_stride"),
        warps=WARPS,
        stages=3,
        budget=Budget(registers=128, shared_bytes=16 * 1024, ctas_per_sm=2, mma=None),
    ),
    Specialisation(
        name="filter",
        kernel=filter_kernel,
        signature={
            "scores": "*fp32",
            **dict.fromkeys(("visible", "thresholds_in", "kept_positions", "kept_counts"), "*i32"),
            **dict.fromkeys(("scores_stride", "kept_stride", "counts_stride", "width"), "i32"),
        },
        constants={"TILE": TILE, "CHUNK": CHUNK, "VECTOR": VECTOR},
        aligned=(
            "scores",
            "visible",
            "thresholds_in",
            "kept_positions",
            "kept_counts",
            "scores_stride",
            "kept_stride",
            "counts_stride",
        ),
        warps=WARPS,
        stages=3,
        budget=Budget(registers=64, shared_bytes=16 * 1024, ctas_per_sm=4, mma=None),
    ),
)

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Sparse MLA, decode and prefill: each query row attends to the latent rows of its slot list.

One CTA takes one query row, up to 64 of its heads and one part of its list, and gathers the latent
rows of a tile of slots straight from the paged cache. Prefill is more rows with an undivided list.
The CTAs of a row's 64-head halves are neighbours: the second finds the rows in the L2 cache.

For what the interpreter does not reach see `kernels.hopper.latent_attention`. The launcher starts
`kernels.hopper.sparse_mla_gluon` instead where it is asked to.

Source: DeepSeek-V3.2 report, eq. 2; DeepSeek-V2 report, eq. 37-47 for the absorbed form;
FlashDecoding for splitting a row over CTAs.
"""

from __future__ import annotations

from typing import Any, Literal

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

INVARIANT_SPLIT_ENTRIES = 1024
"""Entries of a part where results must not depend on the batch: few enough that a lone row is
spread over CTAs, enough that a prefill is not held up by writing partial averages."""


@triton.jit
def sparse_mla_kernel(
    q,
    cache,
    slots,
    out,
    lse,
    scale_log2,
    entries,
    entries_per_split,
    splits,
    q_token_stride,
    q_head_stride,
    slots_stride,
    H: tl.constexpr,
    C: tl.constexpr,
    R: tl.constexpr,
    ROW: tl.constexpr,
    GROUP: tl.constexpr,
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

    begin = split * entries_per_split
    end = tl.minimum(begin + entries_per_split, entries)
    entry = tl.arange(0, BLOCK_K)
    row_slots = slots + token * slots_stride
    for first in tl.range(begin, end, BLOCK_K):
        slot = tl.load(row_slots + first + entry, mask=first + entry < end, other=-1)
        valid = slot >= 0
        row = tl.maximum(slot, 0).to(tl.int64)
        if GROUP > 0:
            latents, ropes = load_fp8_rows(cache, row, valid, C, R, ROW, GROUP, COMPUTE)
        else:
            latents, ropes = load_rows(cache, row, valid, C, R, ROW, COMPUTE)
        best, total, sums = attend(
            q_latent, q_rope, latents, ropes, valid, best, total, sums, scale_log2, entries, COMPUTE
        )

    if PARTIAL:
        out_row = (token * splits + split) * H + head
    else:
        out_row = token * H + head
    store_average(out, lse, out_row, best, total, sums, C, not PARTIAL)


def sparse_mla(
    q: Tensor,
    cache: Tensor,
    slots: Tensor,
    scale: float,
    *,
    latent: int,
    splits: int | None = None,
    batch_invariant: bool = False,
    out_dtype: torch.dtype | None = None,
    kernel: Literal["triton", "gluon"] = "triton",
) -> tuple[Tensor, Tensor]:
    """Returns what `kernels.sparse_mla.sparse_mla` returns, computed on the tensor cores.

    q [T, H, C + R] bfloat16, the last dimension contiguous, H 16, 32, 64 or 128; cache bytes
    [S, row] uint8 or values [S, C + R] bfloat16; slots [T, K] int32 or int64. Averages come in
    `out_dtype`, bfloat16 (the default) or float32.
    splits: parts that a row's list is divided into, 1, 2, 4, 8 or 16; chosen from T and the
    device if None. batch_invariant: parts of a fixed number of entries, so that a row's result
    does not depend, to the last bit, on the other rows nor on the padding behind its list.
    kernel: "gluon" takes `kernels.hopper.sparse_mla_gluon`, whose results were never checked on a
    GPU; for 64 or 128 heads, fp8 rows, C = 512 and R = 64.
    Raises ValueError for shapes, dtypes, strides and devices that the kernel does not support.
    """
    out_dtype = q.dtype if out_dtype is None else out_dtype
    rows, tile = check_attention(q, cache, scale, latent, out_dtype)
    run, sizes = _kernel(kernel, q, cache, latent, tile, rows.COMPUTE)
    tokens, heads, _ = q.shape
    check_tensor("slots", slots, (tokens, None), (torch.int32, torch.int64), like=q)
    entries = slots.shape[1]
    if batch_invariant:
        if splits is not None:
            raise ValueError(f"splits is {splits}; with batch_invariant it must be None")
        splits = max(1, -(-entries // INVARIANT_SPLIT_ENTRIES))
        entries_per_split = INVARIANT_SPLIT_ENTRIES
    else:
        tiles = -(-entries // tile.entries)
        if splits is None:
            ctas = tokens * (heads // tile.heads)
            splits = choose_splits(ctas, tiles, tile.ctas_per_sm * device_sms(q.device))
        check_choice("splits", splits, SPLITS)
        entries_per_split = -(-tiles // splits) * tile.entries

    def launch(some: slice, averages: Tensor, lse: Tensor) -> None:
        run[((some.stop - some.start) * splits * (heads // tile.heads),)](
            q[some],
            cache,
            slots[some],
            averages,
            lse,
            scale * LOG2_E,
            entries,
            entries_per_split,
            splits,
            q.stride(0),
            q.stride(1),
            slots.stride(0),
            H=heads,
            C=rows.C,
            R=rows.R,
            ROW=rows.ROW,
            GROUP=rows.GROUP,
            PARTIAL=splits > 1,
            **sizes,
        )

    return attend_in_splits(launch, q, latent, splits, out_dtype)


def _kernel(
    name: str, q: Tensor, cache: Tensor, latent: int, tile: Tile, compute: tl.dtype
) -> tuple[Any, dict[str, Any]]:
    """The kernel of this name, and what it wants to know beside the arguments that both take."""
    if name == "triton":
        return sparse_mla_kernel, {
            "BLOCK_H": tile.heads,
            "BLOCK_K": tile.entries,
            "COMPUTE": compute,
            "num_warps": tile.warps,
            "num_stages": tile.stages,
        }
    if name != "gluon":
        raise ValueError(f"kernel is {name!r}; it must be 'triton' or 'gluon'")
    try:
        # Only here: a triton without Gluon runs everything else.
        from kernels.hopper import sparse_mla_gluon
    except ImportError as error:
        raise ValueError(
            f"kernel is 'gluon', which triton {triton.__version__} does not have: {error}"
        ) from error
    sparse_mla_gluon.check_gluon(q, cache, latent)
    return sparse_mla_gluon.sparse_mla_gluon_kernel, {"num_warps": sparse_mla_gluon.WARPS}


def _specialisation(heads: int, tile: Tile, *, fp8: bool, partial: bool) -> Specialisation:
    integers = ("entries", "entries_per_split", "q_token_stride", "q_head_stride", "slots_stride")
    # A list that is not divided has one part, and 1 is a constant to the compiler.
    divided = {"splits": "i32"} if partial else {}
    undivided = {} if partial else {"splits": 1}
    return Specialisation(
        name=f"{'fp8' if fp8 else 'bf16'} h{heads}{' partial' if partial else ''}",
        kernel=sparse_mla_kernel,
        signature={
            "q": "*bf16",
            "cache": "*u8" if fp8 else "*bf16",
            "slots": "*i32",
            "out": "*fp32" if partial else "*bf16",
            "lse": "*fp32",
            "scale_log2": "fp32",
            **dict.fromkeys(integers, "i32"),
            **divided,
        },
        constants={
            **rows_constants(fp8=fp8),
            "H": heads,
            "BLOCK_H": tile.heads,
            "BLOCK_K": tile.entries,
            "PARTIAL": partial,
            **undivided,
        },
        aligned=("q", "cache", "slots", "out", "lse", *integers),
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

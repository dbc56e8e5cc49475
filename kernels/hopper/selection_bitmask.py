# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Selected positions as a bitmask: what masked prefill reads instead of a list per row.

Source: DeepSeek-V3.2 report, eq. 2 (the set of selected positions).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.hopper.arguments import check_tensor
from kernels.hopper.specialisation import Budget, Specialisation

WORD = 32
"""Positions in a word of the bitmask: position s is bit s % 32 of word s // 32."""
ROW_POSITIONS = 64
"""A row of the bitmask covers a multiple of these, so that a block of keys has whole words."""
_BLOCK = 1024


@triton.jit(do_not_specialize=["length", "bitmask_stride"])
def selection_bitmask_kernel(
    positions,
    bitmask,
    count,
    length,
    positions_stride,
    bitmask_stride,
    BLOCK: tl.constexpr,
    WORD: tl.constexpr,
):
    """Sets a bit per position of one row; `or` commutes, so the order of atomics is no matter."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    position = tl.load(positions + row * positions_stride + at, mask=at < count, other=-1)
    valid = (position >= 0) & (position < length)
    position = tl.where(valid, position, 0)
    word = bitmask + row * bitmask_stride + position // WORD
    tl.atomic_or(word, 1 << (position % WORD), mask=valid, sem="relaxed")


def selection_bitmask(positions: Tensor, length: int) -> Tensor:
    """Returns [T, words] int32 with a bit for each of the row's positions below `length`.

    positions [T, K] int32 in any order, last dimension contiguous, -1 (or anything negative or not
    below length) anywhere for none; words cover length rounded up to a multiple of 64. Raises
    ValueError for other arguments.
    """
    check_tensor("positions", positions, (None, None), (torch.int32,))
    if length < 1:
        raise ValueError(f"length is {length}; it must be positive")
    rows, count = positions.shape
    words = triton.cdiv(length, ROW_POSITIONS) * (ROW_POSITIONS // WORD)
    bitmask = torch.zeros(rows, words, dtype=torch.int32, device=positions.device)
    if rows and count:
        selection_bitmask_kernel[(rows, triton.cdiv(count, _BLOCK))](
            positions,
            bitmask,
            count,
            length,
            positions.stride(0),
            bitmask.stride(0),
            BLOCK=min(_BLOCK, triton.next_power_of_2(count)),
            WORD=WORD,
            num_warps=4,
        )
    return bitmask


SPECIALISATIONS: tuple[Specialisation, ...] = (
    Specialisation(
        name="bitmask of positions",
        kernel=selection_bitmask_kernel,
        signature={
            "positions": "*i32",
            "bitmask": "*i32",
            "count": "i32",
            "length": "i32",
            "positions_stride": "i32",
            "bitmask_stride": "i32",
        },
        constants={"BLOCK": _BLOCK, "WORD": WORD},
        aligned=("positions", "bitmask", "positions_stride"),
        warps=4,
        stages=3,
        budget=Budget(48, 8192, 8, None),
    ),
)

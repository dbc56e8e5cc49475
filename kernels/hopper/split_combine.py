# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Splitting a row's keys over CTAs, and merging what they found.

Partial averages are float32 and their log-sum-exp is to base 2. They are added in the order of the
splits, each row by itself: a row's result depends on its own partials and on their number.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.hopper.arguments import check_tensor
from kernels.hopper.rounding import to_dtype
from kernels.hopper.specialisation import Budget, Specialisation

HOPPER_SMS = 132
SPLITS = (1, 2, 4, 8, 16)
SPLIT_TILES = 5
"""What a further CTA costs beside its share of the keys, in tiles of 64 rows of 656 bytes: reading
its 64 heads' queries (72 KiB) and writing their averages in float32 (128 KiB)."""
WORKSPACE_BYTES = 256 * 2**20
"""Partial averages held at once."""
OUT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
BLOCK_HEADS = 4
WARPS = 4


def choose_splits(ctas: int, tiles: int, slots: int) -> int:
    """Returns into how many parts to divide rows that would take `ctas` CTAs undivided.

    tiles: steps of an undivided row; slots: CTAs that the device holds at once. The part with the
    least estimated time: the waves of CTAs, times the steps of one and what it costs beside them.
    A part has at least two tiles, so that its loads overlap.
    """

    def duration(splits: int) -> tuple[int, int]:
        waves = -(-ctas * splits // slots)
        return waves * (-(-tiles // splits) + (SPLIT_TILES if splits > 1 else 0)), splits

    return min((s for s in SPLITS if s == 1 or s * 2 <= tiles), key=duration)


def device_sms(device: torch.device) -> int:
    """Returns the number of SMs of a CUDA device; an H200's where the interpreter stands in."""
    if device.type != "cuda":
        return HOPPER_SMS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@triton.jit(do_not_specialize=["splits"])
def split_combine_kernel(
    partials,
    partials_lse,
    out,
    lse,
    splits,
    H: tl.constexpr,
    C: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    # BLOCK_H divides H.
    pid = tl.program_id(0)
    token = (pid // (H // BLOCK_H)).to(tl.int64)
    head = (pid % (H // BLOCK_H)) * BLOCK_H + tl.arange(0, BLOCK_H)
    channel = tl.arange(0, C)
    first_row = token * splits * H + head

    highest = tl.full([BLOCK_H], float("-inf"), tl.float32)
    for split in range(splits):
        highest = tl.maximum(highest, tl.load(partials_lse + first_row + split * H))
    # In an empty row -inf minus -inf would be NaN.
    offset = tl.where(highest == float("-inf"), 0.0, highest)

    total = tl.zeros([BLOCK_H], tl.float32)
    sums = tl.zeros([BLOCK_H, C], tl.float32)
    for split in range(splits):
        row = first_row + split * H
        weight = tl.exp2(tl.load(partials_lse + row) - offset)
        partial = tl.load(
            partials + row[:, None] * C + channel[None, :], mask=weight[:, None] > 0, other=0.0
        )
        total += weight
        sums += weight[:, None] * partial

    row = token * H + head
    safe = tl.where(total > 0, total, 1.0)
    merged = to_dtype(sums * (1.0 / safe)[:, None], out.dtype.element_ty)
    tl.store(out + row[:, None] * C + channel[None, :], merged)
    natural = (highest + tl.log2(safe)) * 0.6931471805599453  # ln 2
    tl.store(lse + row, natural)


def split_combine(partials: Tensor, lse: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns what `kernels.split_combine.split_combine` returns.

    partials [T, S, H, C] and lse [T, S, H] contiguous; C a power of two; dtype bfloat16, float16
    or float32. Raises ValueError for anything else.
    """
    check_tensor("partials", partials, (None, None, None, None), (torch.float32,))
    tokens, splits, heads, width = partials.shape
    check_tensor("lse", lse, (tokens, splits, heads), (torch.float32,), like=partials)
    for name, tensor in (("partials", partials), ("lse", lse)):
        if not tensor.is_contiguous():
            raise ValueError(f"{name} has strides {tensor.stride()}; it must be contiguous")
    if width < 1 or width & (width - 1):
        raise ValueError(f"partials has width {width}; it must be a power of two")
    if dtype not in OUT_DTYPES:
        raise ValueError(f"dtype is {dtype}; it must be one of {OUT_DTYPES}")
    out = torch.empty(tokens, heads, width, dtype=dtype, device=partials.device)
    natural = torch.empty(tokens, heads, dtype=torch.float32, device=partials.device)
    block_heads = BLOCK_HEADS if heads % BLOCK_HEADS == 0 else 1
    if tokens and heads:
        split_combine_kernel[(tokens * (heads // block_heads),)](
            partials,
            lse,
            out,
            natural,
            splits,
            H=heads,
            C=width,
            BLOCK_H=block_heads,
            num_warps=WARPS,
        )
    return out, natural


def attend_in_splits(
    launch: Callable[[slice, Tensor, Tensor], None],
    q: Tensor,
    latent: int,
    splits: int,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Returns averages [T, H, C] and natural log-sum-exp [T, H] of queries [T, H, C + R].

    launch(rows, averages, lse) starts the kernel for these rows: with one split it writes theirs,
    [t, H, C] and [t, H]; with more, float32 partials [t, splits, H, C] and [t, splits, H] to base
    2, which are merged here, for as many rows at a time as the workspace has room for.
    """
    tokens, heads, _ = q.shape
    step = max(1, WORKSPACE_BYTES // (splits * heads * latent * 4))

    def merged(rows: slice) -> tuple[Tensor, Tensor]:
        partials = torch.empty(rows.stop - rows.start, splits, heads, latent, device=q.device)
        partials_lse = torch.empty(rows.stop - rows.start, splits, heads, device=q.device)
        launch(rows, partials, partials_lse)
        return split_combine(partials, partials_lse, out_dtype)

    if splits > 1 and 0 < tokens <= step:
        return merged(slice(0, tokens))
    out = torch.empty(tokens, heads, latent, dtype=out_dtype, device=q.device)
    lse = torch.empty(tokens, heads, dtype=torch.float32, device=q.device)
    if splits == 1:
        if tokens:
            launch(slice(0, tokens), out, lse)
        return out, lse
    for begin in range(0, tokens, step):
        rows = slice(begin, min(begin + step, tokens))
        out[rows], lse[rows] = merged(rows)
    return out, lse


def _specialisation(heads: int) -> Specialisation:
    return Specialisation(
        name=f"h{heads}",
        kernel=split_combine_kernel,
        signature={
            "partials": "*fp32",
            "partials_lse": "*fp32",
            "out": "*bf16",
            "lse": "*fp32",
            "splits": "i32",
        },
        constants={"H": heads, "C": 512, "BLOCK_H": BLOCK_HEADS},
        aligned=("partials", "partials_lse", "out", "lse"),
        warps=WARPS,
        stages=3,
        budget=Budget(registers=80, shared_bytes=16 * 1024, ctas_per_sm=6, mma=None),
    )


SPECIALISATIONS = tuple(_specialisation(heads) for heads in (128, 64, 32, 16))

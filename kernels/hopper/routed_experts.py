# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The routed experts of a layer from end to end, and the sum over each token's experts, for sm_90.

Pairs are sorted, multiplied, gated and quantised, multiplied again and summed; nothing waits for
the device, so that a CUDA graph can hold all of it.

Source: DeepSeek-V3 report, eq. 12.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.hopper.arguments import check_tensor
from kernels.hopper.fp8_linear import OUT_DTYPES
from kernels.hopper.grouped_linear import FEW_TOKENS, MANY_TOKENS, check_out, grouped_linear
from kernels.hopper.quantise import swiglu_quantise
from kernels.hopper.rounding import to_dtype
from kernels.hopper.routing import SortedPairs, sort_by_expert
from kernels.hopper.specialisation import Budget, Specialisation

INVARIANT_TILE_TOKENS = 64
_COMBINE_WIDTH = 1024


@triton.jit
def combine_kernel(
    y,
    rows,
    weights,
    shared,
    out,
    width,
    y_stride,
    shared_stride,
    TOP_K: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """out [token] = shared + sum over ranks of weight * y [row], best expert first."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    inside = columns < width
    total = tl.zeros([BLOCK_WIDTH], tl.float32)
    for rank in tl.static_range(TOP_K):
        row = tl.load(rows + token * TOP_K + rank).to(tl.int64)
        weight = tl.load(weights + token * TOP_K + rank)
        present = row >= 0
        value = tl.load(y + row * y_stride + columns, mask=inside & present, other=0.0)
        total += tl.where(present, weight * value.to(tl.float32), 0.0)
    if shared is not None:
        total += tl.load(shared + token * shared_stride + columns, mask=inside, other=0.0).to(
            tl.float32
        )
    tl.store(out + token * width + columns, to_dtype(total, out.dtype.element_ty), mask=inside)


def tile_tokens_for(pairs: int, expert_count: int, *, batch_invariant: bool = False) -> int:
    """Returns the tile to sort for: about twice the pairs an expert has, 16, 32, 64 or 128.

    batch_invariant: one tile at every size, so that all rows are multiplied in the same way.
    """
    if batch_invariant:
        return INVARIANT_TILE_TOKENS
    wanted = 2 * pairs // expert_count
    return next((tile for tile in FEW_TOKENS if wanted <= tile), MANY_TOKENS)


def combine(
    y: Tensor,
    order: SortedPairs,
    weights: Tensor,
    shared: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Returns each token's weighted sum of its experts' rows, plus `shared` [T, D], in `dtype`.

    y [R, D] sorted rows (bfloat16, float16 or float32); weights [T, top_k] float32, contiguous;
    pairs that the order leaves out add nothing. Summed in float32, best expert first, so that a
    token's bits do not depend on the others.
    Raises ValueError for other arguments.
    """
    check_tensor("y", y, (order.pairs.numel(), None), OUT_DTYPES)
    tokens, width = order.rows.shape[0], y.shape[1]
    check_tensor("weights", weights, (tokens, order.top_k), (torch.float32,), like=y)
    if not weights.is_contiguous():
        raise ValueError(f"weights has strides {weights.stride()}; it must be contiguous")
    if shared is not None:
        check_tensor("shared", shared, (tokens, width), OUT_DTYPES, like=y)
    check_out(dtype)
    out = torch.empty(tokens, width, dtype=dtype, device=y.device)
    if tokens:
        combine_kernel[(tokens, triton.cdiv(width, _COMBINE_WIDTH))](
            y,
            order.rows,
            weights,
            shared,
            out,
            width,
            y.stride(0),
            0 if shared is None else shared.stride(0),
            TOP_K=order.top_k,
            BLOCK_WIDTH=min(_COMBINE_WIDTH, triton.next_power_of_2(width)),
            num_warps=4,
        )
    return out


def routed_experts(
    x: Tensor,
    x_scales: Tensor,
    experts: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    gate_up_scales: Tensor,
    down: Tensor,
    down_scales: Tensor,
    *,
    shared: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    batch_invariant: bool = False,
) -> Tensor:
    """Returns sum_e weight_e * swiglu_e(x) [T, hidden] in `dtype`, plus `shared` if given.

    `moe.routed_experts` with FP8 operands: x [T, hidden] and x_scales as `quantise` gives them,
    experts [T, top_k] int32 and weights as `route` gives them, gate_up [E, 2 W, hidden] (gate
    first) and down [E, hidden, W] e4m3 with their blocks' scales. Ids that are no expert here, -1
    of padding or another rank's, add nothing. Nothing waits for the device.
    batch_invariant as for `tile_tokens_for`. Raises ValueError for other arguments.
    """
    expert_count = gate_up.shape[0]
    tile_tokens = tile_tokens_for(experts.numel(), expert_count, batch_invariant=batch_invariant)
    order = sort_by_expert(experts, expert_count, tile_tokens)
    hidden = grouped_linear(x, x_scales, gate_up, gate_up_scales, order, gather=True)
    values, scales = swiglu_quantise(hidden, used=order.used_rows)
    y = grouped_linear(values, scales, down, down_scales, order, gather=False)
    return combine(y, order, weights, shared, dtype)


SPECIALISATIONS: tuple[Specialisation, ...] = (
    Specialisation(
        name="combine top 8",
        kernel=combine_kernel,
        signature={
            "y": "*bf16",
            "rows": "*i32",
            "weights": "*fp32",
            "shared": "*bf16",
            "out": "*bf16",
            "width": "i32",
            "y_stride": "i32",
            "shared_stride": "i32",
        },
        constants={"TOP_K": 8, "BLOCK_WIDTH": _COMBINE_WIDTH},
        aligned=("y", "rows", "weights", "shared", "out", "width", "y_stride", "shared_stride"),
        warps=4,
        stages=3,
        budget=Budget(96, 0, 5, None),
    ),
)

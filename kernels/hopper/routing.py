# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The router of the experts, and the order in which their products take the tokens.

A `pair` is a token and one of its experts: pair = token * top_k + rank. Pairs are sorted by expert,
each expert's padded to whole tiles, so that a tile belongs to one expert. All of it stays on the
device: how many tiles there are is known to the host only as a bound.

Nothing is counted with atomics: within an expert pairs stand in ascending order, the same in every
run.

Source: DeepSeek-V3 report, eq. 12-16 (sigmoid affinities, bias for selection only) and its
node-limited routing (groups).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.hopper.arguments import check_tensor
from kernels.hopper.specialisation import Budget, Specialisation

_BLOCK_PAIRS = 2048


class SortedPairs(NamedTuple):
    """Pairs by expert, in tiles of `tile_tokens` rows; what `sort_by_expert` returns."""

    pairs: Tensor
    """[max_tiles * tile_tokens] int32: the pair of each sorted row; -1 fills up an expert's last
    tile, rows of tiles that are not used are undefined."""
    rows: Tensor
    """[T, top_k] int32: the sorted row of each pair, the inverse of `pairs`; -1 of one left out."""
    tile_experts: Tensor
    """[max_tiles] int32: the expert of each tile that is used; undefined beyond."""
    used_tiles: Tensor
    """[1] int32."""
    used_rows: Tensor
    """[1] int32: used_tiles * tile_tokens."""
    tile_tokens: int
    top_k: int


@triton.jit
def _best(values, index, size):
    """The largest value and its lowest index, by axis 0; values are not NaN."""
    value = tl.max(values, 0)
    return value, tl.min(tl.where(values == value, index, size), 0)


@triton.jit
def route_kernel(
    logits,
    correction_bias,
    experts,
    weights,
    logits_stride,
    group_count,
    group_size,
    scaling,
    KEPT_GROUPS: tl.constexpr,
    TOP_K: tl.constexpr,
    NORMALISE: tl.constexpr,
    LIMITED: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_TOP_K: tl.constexpr,
):
    """One program per token, its affinities as [BLOCK_GROUPS, BLOCK_SIZE] in registers."""
    token = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, BLOCK_GROUPS)
    member = tl.arange(0, BLOCK_SIZE)
    expert = group[:, None] * group_size + member[None, :]
    inside = (group < group_count)[:, None] & (member < group_size)[None, :]
    logit = tl.load(logits + token * logits_stride + expert, mask=inside, other=0.0)
    decay = tl.exp(-tl.abs(logit))
    score = tl.where(logit >= 0, 1.0, decay) / (1.0 + decay)
    biased = score + tl.load(correction_bias + expert, mask=inside, other=0.0)
    # A row of NaN (padding) still gets distinct experts that exist; -inf excludes.
    biased = tl.where(biased == biased, biased, -1.0e38)
    biased = tl.where(inside, biased, -float("inf"))
    if LIMITED:
        best = tl.max(biased, 1)
        first = tl.min(tl.where(biased == best[:, None], member[None, :], BLOCK_SIZE), 1)
        others = tl.where(member[None, :] == first[:, None], -float("inf"), biased)
        second = tl.max(others, 1)
        value = tl.where(group < group_count, best, -float("inf"))
        value = tl.where(second > -float("inf"), value + second, value)
        kept = group < 0
        for _ in tl.static_range(KEPT_GROUPS):
            _value, chosen = _best(value, group, BLOCK_GROUPS)
            kept = kept | (group == chosen)
            value = tl.where(group == chosen, -float("inf"), value)
        biased = tl.where(kept[:, None], biased, -float("inf"))
    flat: tl.constexpr = BLOCK_GROUPS * BLOCK_SIZE
    candidates = tl.reshape(biased, [flat])
    scores = tl.reshape(score, [flat])
    ids = tl.reshape(expert, [flat])
    position = tl.arange(0, flat)
    rank = tl.arange(0, BLOCK_TOP_K)
    chosen_experts = tl.zeros([BLOCK_TOP_K], tl.int32)
    chosen_scores = tl.zeros([BLOCK_TOP_K], tl.float32)
    for k in tl.static_range(TOP_K):
        _value, at = _best(candidates, position, flat)
        here = position == at
        chosen_experts = tl.where(rank == k, tl.sum(tl.where(here, ids, 0), 0), chosen_experts)
        chosen_scores = tl.where(rank == k, tl.sum(tl.where(here, scores, 0.0), 0), chosen_scores)
        candidates = tl.where(here, -float("inf"), candidates)
    if NORMALISE:
        chosen_scores = chosen_scores / (tl.sum(chosen_scores, 0) + 1e-20)
    to = token * TOP_K + rank
    tl.store(experts + to, chosen_experts.to(experts.dtype.element_ty), mask=rank < TOP_K)
    tl.store(weights + to, chosen_scores * scaling, mask=rank < TOP_K)


@triton.jit(do_not_specialize=["pairs"])
def count_pairs_kernel(experts, counts, pairs, BLOCK_PAIRS: tl.constexpr):
    """counts [E]: one program per expert counts its pairs."""
    expert = tl.program_id(0)
    found = tl.zeros([BLOCK_PAIRS], tl.int32)
    for first in tl.range(0, pairs, BLOCK_PAIRS):
        pair = first + tl.arange(0, BLOCK_PAIRS)
        found += (tl.load(experts + pair, mask=pair < pairs, other=-1) == expert).to(tl.int32)
    tl.store(counts + expert, tl.sum(found, 0))


@triton.jit(do_not_specialize=["pairs"])
def place_pairs_kernel(
    experts,
    counts,
    sorted_pairs,
    rows,
    tile_experts,
    used_tiles,
    used_rows,
    pairs,
    expert_count,
    TILE_TOKENS: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
):
    """One program per expert writes its tiles: their expert, their pairs, -1 behind the last."""
    expert = tl.program_id(0)
    every = tl.arange(0, BLOCK_EXPERTS)
    count = tl.load(counts + every, mask=every < expert_count, other=0)
    tiles = (count + (TILE_TOKENS - 1)) // TILE_TOKENS
    first_tile = tl.sum(tl.where(every < expert, tiles, 0), 0)
    own_count = tl.sum(tl.where(every == expert, count, 0), 0)
    own_tiles = tl.sum(tl.where(every == expert, tiles, 0), 0)
    if expert == 0:
        all_tiles = tl.sum(tiles, 0)
        tl.store(used_tiles, all_tiles)
        tl.store(used_rows, all_tiles * TILE_TOKENS)
    if own_count > 0:
        for tile in tl.range(0, own_tiles, BLOCK_EXPERTS):
            tl.store(
                tile_experts + first_tile + tile + every, expert, mask=tile + every < own_tiles
            )
        row = first_tile * TILE_TOKENS
        for first in tl.range(0, pairs, BLOCK_PAIRS):
            pair = first + tl.arange(0, BLOCK_PAIRS)
            own = tl.load(experts + pair, mask=pair < pairs, other=-1) == expert
            to = row + tl.cumsum(own.to(tl.int32), 0) - 1
            tl.store(sorted_pairs + to, pair, mask=own)
            tl.store(rows + pair, to, mask=own)
            row += tl.sum(own.to(tl.int32), 0)
        fill = tl.arange(0, TILE_TOKENS)
        end = (first_tile + own_tiles) * TILE_TOKENS
        tl.store(sorted_pairs + row + fill, -1, mask=row + fill < end)


def route(
    logits: Tensor,
    correction_bias: Tensor,
    *,
    groups: int,
    kept_groups: int,
    top_k: int,
    scaling: float,
    normalise: bool,
) -> tuple[Tensor, Tensor]:
    """Returns (expert ids [T, top_k] int32, weights [T, top_k] float32), as `moe.route` does.

    logits [T, E] float32, experts contiguous; correction_bias [E] float32, added for selection
    only. Ties go to the lowest group and expert. A row depends on itself alone, in any batch; one
    of NaN gets top_k different experts. Raises ValueError for other shapes, and where the kept
    groups have fewer than top_k experts.
    """
    check_tensor("logits", logits, (None, None), (torch.float32,))
    tokens, expert_count = logits.shape
    check_tensor("correction_bias", correction_bias, (expert_count,), (torch.float32,), like=logits)
    if groups < 1 or expert_count % groups or not expert_count:
        raise ValueError(f"groups is {groups}; it must divide the {expert_count} experts")
    if not 1 <= kept_groups <= groups:
        raise ValueError(f"kept_groups is {kept_groups}; it must be from 1 to {groups}")
    group_size = expert_count // groups
    if not 1 <= top_k <= kept_groups * group_size:
        raise ValueError(f"top_k is {top_k}; the kept groups have {kept_groups * group_size}")
    experts = torch.empty(tokens, top_k, dtype=torch.int32, device=logits.device)
    weights = torch.empty(tokens, top_k, dtype=torch.float32, device=logits.device)
    if tokens:
        route_kernel[(tokens,)](
            logits,
            correction_bias,
            experts,
            weights,
            logits.stride(0),
            groups,
            group_size,
            scaling,
            KEPT_GROUPS=kept_groups,
            TOP_K=top_k,
            NORMALISE=normalise,
            LIMITED=kept_groups < groups,
            BLOCK_GROUPS=triton.next_power_of_2(groups),
            BLOCK_SIZE=triton.next_power_of_2(group_size),
            BLOCK_TOP_K=triton.next_power_of_2(top_k),
            num_warps=1,
        )
    return experts, weights


def sort_by_expert(experts: Tensor, expert_count: int, tile_tokens: int) -> SortedPairs:
    """Returns the pairs of experts [T, top_k] int32 by expert, without asking the device.

    expert_count: pairs with ids outside [0, expert_count) are left out, such as padding's -1;
    tile_tokens: a power of two. Raises ValueError for other arguments.
    """
    check_tensor("experts", experts, (None, None), (torch.int32,))
    if not experts.is_contiguous():
        raise ValueError(f"experts has strides {experts.stride()}; it must be contiguous")
    if expert_count < 1:
        raise ValueError(f"expert_count is {expert_count}; it must be positive")
    if tile_tokens < 1 or tile_tokens & (tile_tokens - 1):
        raise ValueError(f"tile_tokens is {tile_tokens}; it must be a power of two")
    pairs, top_k = experts.numel(), experts.shape[1]
    max_tiles = most_tiles(pairs, expert_count, tile_tokens)

    def integers(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=torch.int32, device=experts.device)

    order = SortedPairs(
        pairs=integers(max_tiles * tile_tokens),
        rows=torch.full_like(experts, -1),
        tile_experts=integers(max_tiles),
        used_tiles=integers(1),
        used_rows=integers(1),
        tile_tokens=tile_tokens,
        top_k=top_k,
    )
    counts = integers(expert_count)
    block_pairs = max(16, min(_BLOCK_PAIRS, triton.next_power_of_2(pairs)))
    count_pairs_kernel[(expert_count,)](
        experts, counts, pairs, BLOCK_PAIRS=block_pairs, num_warps=4
    )
    place_pairs_kernel[(expert_count,)](
        experts,
        counts,
        order.pairs,
        order.rows,
        order.tile_experts,
        order.used_tiles,
        order.used_rows,
        pairs,
        expert_count,
        TILE_TOKENS=tile_tokens,
        BLOCK_EXPERTS=triton.next_power_of_2(expert_count),
        BLOCK_PAIRS=block_pairs,
        num_warps=4,
    )
    return order


def most_tiles(pairs: int, expert_count: int, tile_tokens: int) -> int:
    """Returns how many tiles the pairs fill at most, however they fall on the experts."""
    touched = min(pairs, expert_count)
    return touched + (pairs - touched) // tile_tokens


def _place(tile_tokens: int) -> Specialisation:
    signature = {
        name: "*i32"
        for name in (
            "experts", "counts", "sorted_pairs", "rows", "tile_experts", "used_tiles", "used_rows",
        )
    }  # fmt: skip
    return Specialisation(
        name=f"place pairs, tiles of {tile_tokens}",
        kernel=place_pairs_kernel,
        signature=signature | {"pairs": "i32", "expert_count": "i32"},
        constants={
            "TILE_TOKENS": tile_tokens,
            "BLOCK_EXPERTS": 256,
            "BLOCK_PAIRS": _BLOCK_PAIRS,
        },
        aligned=(*signature, "expert_count"),
        warps=4,
        stages=3,
        budget=Budget(128, 8192, 4, None),
    )


SPECIALISATIONS: tuple[Specialisation, ...] = (
    Specialisation(
        name="route: 256 experts in 8 groups, 4 kept, top 8",
        kernel=route_kernel,
        signature={
            "logits": "*fp32",
            "correction_bias": "*fp32",
            "experts": "*i32",
            "weights": "*fp32",
            "logits_stride": "i32",
            "group_count": "i32",
            "group_size": "i32",
            "scaling": "fp32",
        },
        constants={
            "KEPT_GROUPS": 4,
            "TOP_K": 8,
            "NORMALISE": True,
            "LIMITED": True,
            "BLOCK_GROUPS": 8,
            "BLOCK_SIZE": 32,
            "BLOCK_TOP_K": 8,
        },
        aligned=(
            "logits",
            "correction_bias",
            "experts",
            "weights",
            "logits_stride",
            "group_size",
        ),
        warps=1,
        stages=3,
        budget=Budget(128, 2048, 16, None),
    ),
    Specialisation(
        name="count pairs",
        kernel=count_pairs_kernel,
        signature={"experts": "*i32", "counts": "*i32", "pairs": "i32"},
        constants={"BLOCK_PAIRS": _BLOCK_PAIRS},
        aligned=("experts", "counts"),
        warps=4,
        stages=3,
        budget=Budget(96, 1024, 4, None),
    ),
    *map(_place, (16, 32, 64, 128)),
)

"""Against `moe.route` and plain sorting; ids and orders exactly, weights to float32 rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.hopper.routing import SortedPairs, most_tiles, route, sort_by_expert
from kernels.moe import route as torch_route

SETTINGS: dict[str, Any] = {
    "groups": 4,
    "kept_groups": 2,
    "top_k": 4,
    "scaling": 2.5,
    "normalise": True,
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(logits: Tensor, bias: Tensor, device: torch.device, **changed: Any) -> None:
    settings = SETTINGS | changed
    experts, weights = route(logits.to(device), bias.to(device), **settings)
    expected, expected_weights = torch_route(logits, bias, **settings)
    assert experts.dtype == torch.int32 and weights.dtype == torch.float32
    assert torch.equal(experts.cpu().long(), expected)
    # exp and the division differ by units in the last place, the sum of weights by a few.
    assert torch.allclose(weights.cpu(), expected_weights, rtol=2e-6, atol=0)


@pytest.mark.parametrize("shift", [0.0, -3.0])
@pytest.mark.parametrize("kept_groups", [1, 2, 4])
def test_routing_is_that_of_the_torch_op(
    kept_groups: int, shift: float, device: torch.device
) -> None:
    """shift -3: every biased score is negative, so leaving a group out must mean -inf, not 0."""
    same(draw(9, 16), draw(16, seed=1) + shift, device, kept_groups=kept_groups)


@pytest.mark.parametrize(
    ("experts", "groups", "kept_groups", "top_k"), [(24, 3, 2, 3), (8, 8, 3, 3), (5, 1, 1, 5)]
)
def test_sizes_need_not_be_powers_of_two(
    experts: int, groups: int, kept_groups: int, top_k: int, device: torch.device
) -> None:
    sizes = {"groups": groups, "kept_groups": kept_groups, "top_k": top_k}
    same(draw(6, experts), draw(experts, seed=1), device, **sizes)


def test_ties_go_to_the_lowest_group_and_expert(device: torch.device) -> None:
    logits = torch.zeros(2, 16)
    logits[1, [7, 9, 10]] = 1.0
    same(logits, torch.zeros(16), device)


def test_weights_that_are_not_normalised(device: torch.device) -> None:
    same(draw(5, 16), draw(16, seed=1), device, normalise=False, scaling=1.0)


def test_extreme_logits_saturate(device: torch.device) -> None:
    logits = draw(4, 16) * 200
    same(logits, draw(16, seed=1), device)


def test_a_row_of_nan_gets_different_experts_and_harms_no_other(device: torch.device) -> None:
    logits, bias = draw(3, 16), draw(16, seed=1)
    expected = torch_route(logits, bias, **SETTINGS)[0]
    logits[1] = torch.nan
    experts = route(logits.to(device), bias.to(device), **SETTINGS)[0].cpu()
    assert torch.equal(experts[[0, 2]].long(), expected[[0, 2]])
    assert experts[1].unique().numel() == 4
    assert 0 <= int(experts[1].min()) and int(experts[1].max()) < 16


def test_a_row_is_routed_alike_in_any_batch(device: torch.device) -> None:
    logits, bias = draw(7, 16).to(device), draw(16, seed=1).to(device)
    together, weights = route(logits, bias, **SETTINGS)
    alone, alone_weights = route(logits[3:4], bias, **SETTINGS)
    assert torch.equal(together[3:4], alone)
    assert torch.equal(weights[3:4], alone_weights)


def expected_order(experts: Tensor, expert_count: int, tile: int) -> tuple[list[int], list[int]]:
    """Sorted pairs with -1 filling up, and the tiles' experts, by plain sorting."""
    pairs: list[int] = []
    tiles: list[int] = []
    flat = experts.flatten().tolist()
    for expert in range(expert_count):
        own = [pair for pair, of in enumerate(flat) if of == expert]
        count = -(-len(own) // tile)
        pairs += own + [-1] * (count * tile - len(own))
        tiles += [expert] * count
    return pairs, tiles


def holds(order: SortedPairs, experts: Tensor, expert_count: int) -> None:
    pairs, tiles = expected_order(experts.cpu(), expert_count, order.tile_tokens)
    assert order.used_tiles.tolist() == [len(tiles)]
    assert order.used_rows.tolist() == [len(pairs)]
    assert order.tile_experts.tolist()[: len(tiles)] == tiles
    assert order.pairs.tolist()[: len(pairs)] == pairs
    assert len(tiles) <= order.tile_experts.numel()
    for pair, (row, expert) in enumerate(
        zip(order.rows.flatten().tolist(), experts.flatten().tolist(), strict=True)
    ):
        assert row == -1 or pairs[row] == pair
        assert (row >= 0) == (0 <= expert < expert_count)


@pytest.mark.parametrize("tile", [1, 16, 128])
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_pairs_stand_by_expert_in_whole_tiles(tokens: int, tile: int, device: torch.device) -> None:
    experts = torch.stack([torch.randperm(8)[:3] for _ in range(tokens)]).int().to(device)
    holds(sort_by_expert(experts, 8, tile), experts, 8)


@pytest.mark.parametrize("expert", [0, 5])
def test_all_pairs_at_one_expert(expert: int, device: torch.device) -> None:
    """Exactly two tiles, and 5 pairs more."""
    for tokens in (32, 37):
        experts = torch.full((tokens, 1), expert, dtype=torch.int32, device=device)
        holds(sort_by_expert(experts, 6, 16), experts, 6)


def test_more_pairs_than_one_block_of_them(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    experts = torch.randint(0, 3, (1100, 2), generator=generator).int().to(device)
    holds(sort_by_expert(experts, 3, 16), experts, 3)


def test_experts_of_other_ranks_are_left_out(device: torch.device) -> None:
    experts = torch.tensor([[0, 9], [-1, 2]], dtype=torch.int32, device=device)
    holds(sort_by_expert(experts, 4, 16), experts, 4)


def test_no_tokens_use_no_tiles(device: torch.device) -> None:
    experts = torch.zeros(0, 4, dtype=torch.int32, device=device)
    order = sort_by_expert(experts, 4, 16)
    assert order.used_tiles.tolist() == [0] and order.pairs.numel() == 0
    assert route(torch.zeros(0, 16, device=device), torch.zeros(16, device=device), **SETTINGS)[
        0
    ].shape == (0, 4)


def test_the_bound_on_tiles_is_reached_and_never_passed() -> None:
    for pairs in range(1, 40):
        for experts in (1, 3, 8):
            counts = [1] * min(pairs, experts)
            counts[0] += pairs - len(counts)  # the worst case: all others on one expert
            assert sum(-(-count // 4) for count in counts) == most_tiles(pairs, experts, 4)


def test_unsupported_arguments_are_named(device: torch.device) -> None:
    logits, bias = torch.zeros(2, 16, device=device), torch.zeros(16, device=device)
    with pytest.raises(ValueError, match="logits is float64; must be float32"):
        route(logits.double(), bias, **SETTINGS)
    with pytest.raises(ValueError, match=r"correction_bias has shape \[15\]; it must be \[16\]"):
        route(logits, bias[:15], **SETTINGS)
    with pytest.raises(ValueError, match="groups is 3; it must divide the 16 experts"):
        route(logits, bias, **SETTINGS | {"groups": 3})
    with pytest.raises(ValueError, match="kept_groups is 5; it must be from 1 to 4"):
        route(logits, bias, **SETTINGS | {"kept_groups": 5})
    with pytest.raises(ValueError, match="top_k is 9; the kept groups have 8"):
        route(logits, bias, **SETTINGS | {"top_k": 9})
    experts = torch.zeros(2, 4, dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match="experts is int64; must be int32"):
        sort_by_expert(experts.long(), 4, 16)
    with pytest.raises(ValueError, match="experts has strides"):
        sort_by_expert(experts[:, :2], 4, 16)
    with pytest.raises(ValueError, match="tile_tokens is 24; it must be a power of two"):
        sort_by_expert(experts, 4, 24)
    with pytest.raises(ValueError, match="expert_count is 0"):
        sort_by_expert(experts, 0, 16)

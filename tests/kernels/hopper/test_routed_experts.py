"""Against float64 on the same e4m3 values and weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.fp8 import dequantise_groups
from kernels.hopper.routed_experts import combine, routed_experts, tile_tokens_for
from kernels.hopper.routing import sort_by_expert
from tests.kernels.hopper.experts import (
    EXPERTS,
    TOP_K,
    experts_of,
    tokens_of,
    weights_of,
    wide_weights,
)


@pytest.mark.parametrize("with_shared", [False, True])
def test_combine_sums_each_tokens_experts(with_shared: bool, device: torch.device) -> None:
    order = sort_by_expert(experts_of(6, device), EXPERTS, 16)
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(order.pairs.numel(), 1100, generator=generator).bfloat16()
    y[order.pairs.cpu() < 0] = torch.nan
    weights = torch.rand(6, TOP_K, generator=generator)
    shared = torch.randn(6, 1100, generator=generator).bfloat16() if with_shared else None
    found = combine(
        y.to(device), order, weights.to(device), None if shared is None else shared.to(device)
    )
    expected = (y[order.rows.cpu().long()].double() * weights[:, :, None].double()).sum(1)
    if shared is not None:
        expected += shared.double()
    # Three float32 roundings of values below 8.
    assert (found.cpu().double() - expected).abs().max() <= 3 * 8 * 2**-24


def reference(
    x: Tensor, experts: Tensor, weights: Tensor, gate_up: list[Tensor], down: list[Tensor]
) -> Tensor:
    """[T, hidden] float64, the hidden layer unrounded."""
    out = torch.zeros_like(x)
    for t in range(x.shape[0]):
        for expert, weight in zip(experts[t].tolist(), weights[t].tolist(), strict=True):
            gate, up = (gate_up[expert] @ x[t]).chunk(2)
            out[t] += weight * (down[expert] @ (gate * torch.sigmoid(gate) * up))
    return out


def layer(tokens: int, device: torch.device) -> dict[str, Tensor]:
    x, x_scales = tokens_of(tokens, 256, device)
    gate_up, gate_up_scales = weights_of(256, 256, device)
    down, down_scales = weights_of(256, 128, device)
    generator = torch.Generator().manual_seed(7)
    return {
        "x": x,
        "x_scales": x_scales,
        "experts": experts_of(tokens, device),
        "weights": torch.rand(tokens, TOP_K, generator=generator).to(device),
        "gate_up": gate_up,
        "gate_up_scales": gate_up_scales,
        "down": down,
        "down_scales": down_scales,
    }


def test_the_whole_layer_matches_float64(device: torch.device) -> None:
    """The hidden layer is rounded to bfloat16 and to e4m3, whose steps are 2^-4 of a value: an
    error of half a step in each of 128 summands, with random signs, is about 2^-5 / sqrt(3) of
    the output's own deviation."""
    parts = layer(6, device)
    found = routed_experts(**parts).cpu().double()
    wide = dequantise_groups(parts["x"].cpu(), parts["x_scales"].cpu(), torch.float64)
    expected = reference(
        wide,
        parts["experts"].cpu(),
        parts["weights"].cpu(),
        wide_weights(parts["gate_up"], parts["gate_up_scales"]),
        wide_weights(parts["down"], parts["down_scales"]),
    )
    assert (found - expected).square().mean().sqrt() <= 2**-5 * expected.square().mean().sqrt()


def test_batch_invariant_tokens_do_not_depend_on_the_batch(device: torch.device) -> None:
    """Nor on where their pairs stand in a tile."""
    parts = layer(9, device)
    per_token = {"x", "x_scales", "experts", "weights"}

    def fifth(tokens: slice) -> Tensor:
        few = {k: v[tokens] if k in per_token else v for k, v in parts.items()}
        return routed_experts(**few, batch_invariant=True)[5 - tokens.start].cpu()

    alone = fifth(slice(5, 6))
    assert torch.equal(fifth(slice(0, 9)), alone)
    assert torch.equal(fifth(slice(3, 7)), alone)


def test_tiles_grow_with_the_pairs_of_an_expert() -> None:
    sizes = [tile_tokens_for(pairs, 256) for pairs in (8, 512, 2048, 4096, 8192, 32768)]
    assert sizes == [16, 16, 16, 32, 64, 128]
    assert {tile_tokens_for(pairs, 256, batch_invariant=True) for pairs in (8, 32768)} == {64}


def test_no_tokens_give_no_rows(device: torch.device) -> None:
    parts = layer(1, device)
    per_token = {"x", "x_scales", "experts", "weights"}
    none = {k: v[:0] if k in per_token else v for k, v in parts.items()}
    assert routed_experts(**none).shape == (0, 256)


def test_pairs_of_no_expert_add_nothing(device: torch.device) -> None:
    """Padding's -1 and ids of other ranks; a token of such alone gives 0."""
    order_of = torch.tensor([[2, -1], [-1, 9], [0, 4]], dtype=torch.int32, device=device)
    order = sort_by_expert(order_of, EXPERTS, 16)
    y = torch.full((order.pairs.numel(), 64), torch.nan, device=device)
    for token, rank in ((0, 0), (2, 0), (2, 1)):
        y[order.rows[token, rank].item()] = 1.0 + token + rank
    weights = torch.tensor([[0.5, torch.nan], [0.5, 0.5], [0.25, 2.0]], device=device)
    expected = torch.tensor([0.5, 0.0, 0.25 * 3 + 2.0 * 4])[:, None].expand(3, 64)
    assert torch.equal(combine(y, order, weights).cpu(), expected)


def test_unsupported_arguments_are_named(device: torch.device) -> None:
    order = sort_by_expert(experts_of(4, device), EXPERTS, 16)
    y = torch.zeros(order.pairs.numel(), 256, device=device)
    weights = torch.zeros(4, TOP_K, device=device)
    with pytest.raises(ValueError, match=r"weights has shape \[4, 3\]; it must be \[4, 2\]"):
        combine(y, order, torch.zeros(4, 3, device=device))
    with pytest.raises(ValueError, match=r"shared has shape \[4, 255\]; it must be \[4, 256\]"):
        combine(y, order, weights, y[:4, :255])
    with pytest.raises(ValueError, match="y has shape"):
        combine(y[1:], order, weights)
    with pytest.raises(ValueError, match=r"dtype is torch\.int8; allowed are"):
        combine(y, order, weights, dtype=torch.int8)

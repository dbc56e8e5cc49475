"""Against float64 on the same e4m3 values; tolerances as in test_fp8_linear.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.fp8 import dequantise_groups
from kernels.hopper.grouped_linear import grouped_linear
from kernels.hopper.routing import SortedPairs, sort_by_expert
from tests.kernels.hopper.experts import (
    EXPERTS,
    experts_of,
    tokens_of,
    weights_of,
    wide_weights,
)

TOLERANCE = 2e-5


def expected_rows(x: Tensor, weights: list[Tensor], order: SortedPairs, gather: bool) -> Tensor:
    """[used rows, N] float64 for dequantised x."""
    used = order.used_rows.item()
    out = torch.zeros(int(used), weights[0].shape[0], dtype=torch.float64)
    for row in range(int(used)):
        pair = order.pairs[row].item()
        weight = weights[int(order.tile_experts[row // order.tile_tokens])]
        if not gather:
            out[row] = weight @ x[row]
        elif pair >= 0:
            out[row] = weight @ x[int(pair) // order.top_k]
    return out


@pytest.mark.parametrize("tile", [16, 32, 64, 128])
@pytest.mark.parametrize("outputs", [64, 136])
def test_gathered_tokens_match_float64(tile: int, outputs: int, device: torch.device) -> None:
    """Expert 3 has no token; 136 outputs: the last tile must not show the next expert's."""
    x, x_scales = tokens_of(21, 256, device)
    weights, scales = weights_of(outputs, 256, device)
    order = sort_by_expert(experts_of(21, device), EXPERTS, tile)
    found = grouped_linear(x, x_scales, weights, scales, order, torch.float32, gather=True).cpu()
    wide = dequantise_groups(x.cpu(), x_scales.cpu(), torch.float64)
    expected = expected_rows(wide, wide_weights(weights, scales), order, True)
    error = (found[: len(expected)].double() - expected).abs().max()
    assert error <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("tile", [16, 128])
def test_sorted_rows_match_float64(tile: int, device: torch.device) -> None:
    """Rows of tiles that are not used are NaN: they must not be seen in those that are."""
    order = sort_by_expert(experts_of(9, device), EXPERTS, tile)
    rows, used = order.pairs.numel(), int(order.used_rows.item())
    x, x_scales = tokens_of(rows, 128, device)
    x[used:] = torch.nan
    weights, scales = weights_of(136, 128, device)
    found = grouped_linear(x, x_scales, weights, scales, order, torch.float32, gather=False).cpu()
    wide = dequantise_groups(x.cpu(), x_scales.cpu(), torch.float64)
    expected = expected_rows(wide, wide_weights(weights, scales), order, False)
    error = (found[:used].double() - expected).abs().max()
    assert error <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.zeros(4, 128)}, "x is float32; must be float8_e4m3fn"),
        ({"x_scales": torch.zeros(4, 2)}, r"x_scales has shape \[4, 2\]; it must be \[4, 1\]"),
        ({"weights": torch.zeros(5, 64, 256).to(torch.float8_e4m3fn)}, "weights has shape"),
        ({"weight_scales": torch.zeros(5, 2, 1)}, "weight_scales has shape"),
        ({"dtype": torch.int8}, "dtype is torch.int8; allowed are"),
        ({"gather": False}, r"x has shape \[4, 128\]; it must be \[80, any\]"),
    ],
)
def test_unsupported_operands_are_named(
    changed: dict[str, Any], message: str, device: torch.device
) -> None:
    x, x_scales = tokens_of(4, 128, device)
    weights, weight_scales = weights_of(64, 128, device)
    order = sort_by_expert(experts_of(4, device), EXPERTS, 16)
    arguments: dict[str, Any] = {
        "x": x,
        "x_scales": x_scales,
        "weights": weights,
        "weight_scales": weight_scales,
        "order": order,
        "gather": True,
    }
    arguments |= {k: v.to(device) if isinstance(v, Tensor) else v for k, v in changed.items()}
    with pytest.raises(ValueError, match=message):
        grouped_linear(**arguments)


def test_an_unsupported_tile_is_named(device: torch.device) -> None:
    order = sort_by_expert(experts_of(4, device), EXPERTS, 8)
    operands = *tokens_of(4, 128, device), *weights_of(64, 128, device)
    with pytest.raises(ValueError, match=r"order\.tile_tokens is 8; allowed are 16, 32, 64, 128"):
        grouped_linear(*operands, order, gather=True)

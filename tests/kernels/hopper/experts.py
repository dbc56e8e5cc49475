"""Tokens, weights and choices of a few experts, seeded, with values that FP8 holds exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.fp8 import quantise_groups
from kernels.fp8_linear import BLOCK, dequantise_weight

EXPERTS, TOP_K = 5, 2


def tokens_of(tokens: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    x, scales = quantise_groups(torch.randn(tokens, width, generator=generator))
    return x.to(device), scales.T.contiguous().T.to(device)


def weights_of(outputs: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(outputs)
    weights = torch.randn(EXPERTS, outputs, width, generator=generator).to(torch.float8_e4m3fn)
    scales = torch.rand(EXPERTS, -(-outputs // BLOCK), width // BLOCK, generator=generator) + 0.5
    return weights.to(device), (scales * 0.1).to(device)


def experts_of(tokens: int, device: torch.device, *, without: int = 3) -> Tensor:
    """Two different experts each, none of them `without`."""
    generator = torch.Generator().manual_seed(tokens + 1)
    others = torch.tensor([e for e in range(EXPERTS) if e != without])
    chosen = [
        others[torch.randperm(len(others), generator=generator)[:TOP_K]] for _ in range(tokens)
    ]
    return torch.stack(chosen).int().to(device)


def wide_weights(weights: Tensor, scales: Tensor) -> list[Tensor]:
    pairs = zip(weights.cpu(), scales.cpu(), strict=True)
    return [dequantise_weight(weight, scale, torch.float64) for weight, scale in pairs]

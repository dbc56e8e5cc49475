"""The batched Muon."""

from __future__ import annotations

import torch
from torch import nn

from training.muon import Muon, orthogonalise


def test_orthogonalise_brings_singular_values_near_one() -> None:
    matrices = torch.randn(4, 24, 64, generator=torch.Generator().manual_seed(0))
    for values in torch.linalg.svdvals(orthogonalise(matrices).float()):
        assert values.min() > 0.5 and values.max() < 1.4


def test_tall_and_wide_matrices_are_treated_alike() -> None:
    wide = torch.randn(1, 24, 64, generator=torch.Generator().manual_seed(1))
    tall = orthogonalise(wide.transpose(-1, -2)).transpose(-1, -2)
    torch.testing.assert_close(tall, orthogonalise(wide), atol=0.02, rtol=0)


def test_a_stack_is_updated_like_its_matrices() -> None:
    start = torch.randn(3, 16, 32)
    gradient = torch.randn(3, 16, 32)
    stack = nn.Parameter(start.clone())
    singles = [nn.Parameter(one.clone()) for one in start]
    stack.grad = gradient.clone()
    for single, part in zip(singles, gradient, strict=True):
        single.grad = part.clone()
    Muon([stack], lr=0.1).step()
    Muon(singles, lr=0.1).step()
    torch.testing.assert_close(stack.detach(), torch.stack([one.detach() for one in singles]))


def test_minimises_a_quadratic() -> None:
    target = torch.randn(8, 8, generator=torch.Generator().manual_seed(2))
    weight = nn.Parameter(torch.zeros(8, 8))
    optimiser = Muon([weight], lr=0.05)
    first = target.pow(2).mean()
    for _ in range(200):
        optimiser.zero_grad()
        (weight - target).pow(2).mean().backward()
        optimiser.step()
    assert (weight.detach() - target).pow(2).mean() < 0.05 * first

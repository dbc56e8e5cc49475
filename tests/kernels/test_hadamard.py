from __future__ import annotations

import pytest
import torch

from kernels.hadamard import hadamard, hadamard_matrix, hadamard_reference

CPU = torch.device("cpu")


def vectors(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("width", [1, 2, 32, 128])
def test_it_is_the_natural_order_matrix(width: int) -> None:
    x = vectors(5, width)
    torch.testing.assert_close(hadamard(x), hadamard_reference(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("width", [2, 64, 128])
def test_it_is_symmetric_and_its_own_inverse(width: int) -> None:
    matrix = hadamard_matrix(width, torch.float64, CPU)
    assert torch.equal(matrix, matrix.T)
    torch.testing.assert_close(matrix @ matrix, torch.eye(width).double(), atol=1e-12, rtol=0)


def test_scores_survive_rotating_both_sides_and_not_one() -> None:
    q, k = vectors(4, 128), vectors(6, 128).flip(0)
    scores = q @ k.T
    torch.testing.assert_close(hadamard(q) @ hadamard(k).T, scores, atol=1e-9, rtol=0)
    assert (hadamard(q) @ k.T - scores).abs().max() > 5


def test_an_outlier_is_spread_over_all_channels() -> None:
    x = torch.zeros(128)
    x[17] = 128.0
    rotated = hadamard(x)
    torch.testing.assert_close(rotated.abs(), torch.full((128,), 128.0 / 128**0.5))


@pytest.mark.parametrize("width", [0, 3, 96])
def test_other_widths_are_refused(width: int) -> None:
    with pytest.raises(ValueError, match=f"width is {width}"):
        hadamard_matrix(width, torch.float32, CPU)


def test_a_matrix_first_made_in_inference_mode_can_be_trained_through() -> None:
    hadamard_matrix.cache_clear()
    with torch.inference_mode():
        hadamard(torch.randn(2, 16))
    x = torch.randn(2, 16, requires_grad=True)
    hadamard(x).square().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 2 * x.detach())  # a rotation keeps lengths

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.linear import ROW_TILE, Linear, grouped_product

SHAPES = [(96, 200), (256, 64), (130, 33)]
"""(in, out), an odd one among them."""


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_x_times_the_transposed_weight(
    shape: tuple[int, int], dtype: torch.dtype, batch_invariant: bool
) -> None:
    columns, rows = shape
    weight = draw(rows, columns).to(dtype)
    linear = Linear(weight, batch_invariant=batch_invariant)
    assert (linear.in_features, linear.out_features) == shape
    for tokens in (1, 2, ROW_TILE, ROW_TILE + 1, 70):
        x = draw(tokens, columns, seed=tokens).to(dtype)
        expected = x.double() @ weight.double().T
        tolerance = 1e-4 if dtype == torch.float32 else 0.3
        found = linear(x)
        assert found.dtype == dtype and found.shape == (tokens, rows)
        torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=0.01)


def test_a_slice_of_wider_rows_is_read_where_it_lies() -> None:
    linear = Linear(draw(16, 32))
    wide = draw(6, 64, seed=1)
    torch.testing.assert_close(linear(wide[:, 16:48]), linear(wide[:, 16:48].contiguous()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_invariant_rows_are_the_same_bits_in_any_company(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    columns, rows = shape
    linear = Linear(draw(rows, columns).to(dtype), batch_invariant=True)
    x = draw(160, columns, seed=1).to(dtype)
    whole = linear(x)
    for tokens in (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 64, 100, 159):
        for begin in (0, 1, 160 - tokens):
            part = slice(begin, begin + tokens)
            assert torch.equal(linear(x[part]), whole[part])


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_invariant_grouped_rows_are_the_same_bits_in_any_company(
    shape: tuple[int, int],
) -> None:
    x, weights = draw(4, 160, shape[0]), draw(4, *shape, seed=1)
    whole = grouped_product(x, weights, batch_invariant=True)
    torch.testing.assert_close(whole, torch.einsum("gti,gio->gto", x, weights), atol=1e-4, rtol=0)
    for tokens in (1, 2, 7, 16, 17, 64, 159):
        part = slice(160 - tokens, 160)
        found = grouped_product(x[:, part], weights, batch_invariant=True)
        assert torch.equal(found, whole[:, part])

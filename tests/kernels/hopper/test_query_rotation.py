"""Against the torch path and float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.hopper.query_rotation import rotate_queries
from kernels.rope import rope_interleaved, rope_reference, rope_table


def frequencies(rope: int) -> Tensor:
    return 10_000.0 ** (-torch.arange(rope // 2).double() / (rope // 2))


def queries(tokens: int, heads: int, nope: int, rope: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(tokens)
    return torch.randn(tokens, heads, nope + rope, generator=generator).to(dtype)


STEP = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 2**-22}
"""Of a value: a last bit. torch contracts products into fused multiply-adds, or not, by size."""


@pytest.mark.parametrize("dtype", list(STEP), ids=str)
@pytest.mark.parametrize(("tokens", "heads", "rope"), [(1, 16, 64), (3, 5, 16), (2, 128, 2)])
def test_it_is_the_torch_path_up_to_a_last_bit(
    tokens: int, heads: int, rope: int, dtype: torch.dtype, device: torch.device
) -> None:
    q = queries(tokens, heads, 16, rope, dtype).to(device)
    table = rope_table(frequencies(rope), torch.arange(7, 7 + tokens)).to(device)
    # Into the end of wider rows, whose beginning stays.
    out = torch.full((tokens, heads, 32 + rope), 3.0, dtype=dtype, device=device)
    rotate_queries(q[..., 16:], table, out[..., 32:])
    expected = rope_interleaved(q[..., 16:], table)
    torch.testing.assert_close(out[..., 32:], expected, rtol=STEP[dtype], atol=2**-22)
    assert (out[..., :32] == 3.0).all()


def test_in_place(device: torch.device) -> None:
    q = queries(2, 4, 8, 32, torch.bfloat16).to(device)
    table = rope_table(frequencies(32), torch.tensor([0, 131_071])).to(device)
    expected = torch.empty_like(q[..., 8:])
    rotate_queries(q[..., 8:], table, expected)
    rotate_queries(q[..., 8:], table, q[..., 8:])
    assert torch.equal(q[..., 8:], expected)


def test_against_float64(device: torch.device) -> None:
    x = queries(1, 2, 0, 16, torch.float32).to(device)
    out = torch.empty_like(x)
    rotate_queries(x, rope_table(frequencies(16), torch.tensor([12_345])).to(device), out)
    for head in range(2):
        plain = rope_reference(x[0, head].cpu().double(), 12_345, frequencies(16), half_split=False)
        # Angles are formed in float64; sine and cosine are rounded to float32, and two products.
        torch.testing.assert_close(out[0, head].cpu().double(), plain, atol=1e-6, rtol=0)


def test_nothing_to_rotate(device: torch.device) -> None:
    x = torch.empty(0, 4, 16, device=device)
    rotate_queries(x, torch.empty(0, 8, dtype=torch.complex64, device=device), x)


def test_other_arguments_are_refused(device: torch.device) -> None:
    x = torch.zeros(2, 4, 16, device=device)
    table = torch.ones(2, 8, dtype=torch.complex64, device=device)
    with pytest.raises(ValueError, match="width 15"):
        rotate_queries(x[..., :15], table, x[..., :15])
    with pytest.raises(ValueError, match=r"table has shape \[2, 8\]"):
        rotate_queries(x[..., :8], table, x[..., :8])
    with pytest.raises(ValueError, match="out is float16"):
        rotate_queries(x, table, x.half())
    with pytest.raises(ValueError, match="ropes has strides"):
        rotate_queries(x.transpose(1, 2)[:, :, :4], table[:, :2], x[..., :4])

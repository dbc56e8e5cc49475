from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels.rope import rope_half_split, rope_interleaved, rope_reference, rope_table

WIDTH = 16
INV_FREQ = 10_000.0 ** (-torch.arange(0, WIDTH, 2, dtype=torch.float64) / WIDTH)
POSITIONS = torch.tensor([0, 1, 777, 131_071])

Rotate = Callable[[Tensor, Tensor], Tensor]


def vectors(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def turned(pairs: Tensor) -> Tensor:
    """Complex pairs [T, ..., R/2] times e^(i angle), in complex128."""
    angles = POSITIONS.double()[:, None] * INV_FREQ
    turn = torch.polar(torch.ones_like(angles), angles)
    return pairs * turn.view(len(POSITIONS), *(1,) * (pairs.dim() - 2), WIDTH // 2)


@pytest.mark.parametrize("heads", [(), (3,), (2, 3)])
def test_interleaved_turns_neighbouring_pairs_as_complex_numbers(heads: tuple[int, ...]) -> None:
    x = vectors(len(POSITIONS), *heads, WIDTH)
    found = rope_interleaved(x, rope_table(INV_FREQ, POSITIONS))
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    expected = torch.view_as_real(turned(pairs)).flatten(-2)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("heads", [(), (3,), (2, 3)])
def test_half_split_turns_pairs_half_a_width_apart(heads: tuple[int, ...]) -> None:
    x = vectors(len(POSITIONS), *heads, WIDTH)
    found = rope_half_split(x, rope_table(INV_FREQ, POSITIONS))
    wide = x.double()
    result = turned(torch.complex(wide[..., : WIDTH // 2], wide[..., WIDTH // 2 :]))
    expected = torch.cat((result.real, result.imag), dim=-1)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("rotate", "half_split"), [(rope_interleaved, False), (rope_half_split, True)]
)
def test_both_match_the_reference_up_to_the_last_position(rotate: Rotate, half_split: bool) -> None:
    x = vectors(len(POSITIONS), WIDTH)
    found = rotate(x, rope_table(INV_FREQ, POSITIONS))
    for row, position, vector in zip(found, POSITIONS.tolist(), x.double(), strict=True):
        expected = rope_reference(vector, position, INV_FREQ, half_split=half_split)
        torch.testing.assert_close(row.double(), expected, atol=1e-6, rtol=1e-6)


def test_the_layouts_are_one_permutation_apart_and_not_equal() -> None:
    x = vectors(len(POSITIONS), WIDTH)
    table = rope_table(INV_FREQ, POSITIONS)
    order = torch.cat((torch.arange(0, WIDTH, 2), torch.arange(1, WIDTH, 2)))
    split, interleaved = rope_half_split(x[:, order], table), rope_interleaved(x, table)
    torch.testing.assert_close(split, interleaved[:, order])
    assert (rope_half_split(x, table) - interleaved).abs().max() > 0.5


def test_scores_depend_on_the_distance_only() -> None:
    q, k = vectors(1, WIDTH).double(), vectors(2, WIDTH)[1:].double()
    for rotate in (rope_interleaved, rope_half_split):
        scores = [
            rotate(q, rope_table(INV_FREQ, torch.tensor([start + 5])))
            @ rotate(k, rope_table(INV_FREQ, torch.tensor([start]))).T
            for start in (0, 100, 131_000)
        ]
        torch.testing.assert_close(scores[1], scores[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(scores[2], scores[0], atol=1e-5, rtol=0)


def test_bfloat16_is_rotated_in_float32_and_rounded_once() -> None:
    x = vectors(len(POSITIONS), WIDTH).bfloat16()
    table = rope_table(INV_FREQ, POSITIONS)
    for rotate in (rope_interleaved, rope_half_split):
        found = rotate(x, table)
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, rotate(x.float(), table).bfloat16())

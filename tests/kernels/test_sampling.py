from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels.sampling import (
    kept_reference,
    sample,
    sample_reference,
    uniform,
    uniform_reference,
)

int64s = st.integers(-(2**63), 2**63 - 1)


@given(int64s, int64s, int64s)
def test_the_hash_is_that_of_python_integers(seed: int, choice: int, position: int) -> None:
    columns = (torch.tensor([value]) for value in (seed, choice, position))
    found = uniform(*columns).item()
    assert found == uniform_reference(seed, choice, position)
    assert 0.0 < found < 1.0


def sampled(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
) -> list[int]:
    rows = logits.shape[0]
    return sample(
        logits,
        torch.full((rows,), temperature),
        torch.full((rows,), top_k, dtype=torch.int32),
        torch.full((rows,), top_p),
        torch.full((rows,), min_p),
        torch.full((rows,), seed),
        torch.arange(rows),
        torch.arange(rows),
    ).tolist()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, 0, 1.0, 0.0),
        (0.7, 5, 1.0, 0.0),
        (1.0, 0, 0.6, 0.0),
        (2.0, 0, 1.0, 0.2),
        (1.3, 9, 0.8, 0.05),
        (0.0, 0, 1.0, 0.0),
        (1.0, 3, 0.0, 0.0),
    ],
)
def test_draws_are_those_of_plain_python(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """Steps of 1/4 between logits: equal ones are many, and stay equal when tempered."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(-12, 12, (40, 50), generator=generator) / 4
    found = sampled(logits, temperature, top_k, top_p, min_p, seed=3)
    for i, (row, token) in enumerate(zip(logits.tolist(), found, strict=True)):
        kept = kept_reference(row, temperature, top_k, top_p, min_p)
        assert token == sample_reference(kept, uniform_reference(3, i, i))


def test_a_row_depends_on_itself_alone() -> None:
    logits = torch.randn(2, 30, generator=torch.Generator().manual_seed(1))
    assert sampled(logits)[0] == sampled(logits[:1])[0]


def test_forbidden_tokens_are_not_drawn_and_nan_does_no_harm() -> None:
    logits = torch.zeros(50, 10)
    logits[:, 4:] = -torch.inf
    assert set(sampled(logits)) == {0, 1, 2, 3}
    assert 0 <= sampled(torch.full((1, 10), torch.nan))[0] < 10

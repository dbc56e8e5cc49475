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
        (1.0, 0, 1.5, 0.0),
        (1.0, 2**31 - 1, 0.9, 2.0),
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


def test_forbidden_tokens_are_not_drawn() -> None:
    logits = torch.zeros(50, 10)
    logits[:, 4:] = -torch.inf
    assert set(sampled(logits)) == {0, 1, 2, 3}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_is_forbidden(temperature: float) -> None:
    logits = torch.zeros(50, 10)
    logits[:, 4:] = torch.nan
    assert set(sampled(logits, temperature)) <= {0, 1, 2, 3}
    assert 0 <= sampled(torch.full((1, 10), torch.nan), temperature)[0] < 10


def test_noise_depends_on_each_argument_and_is_spread_evenly() -> None:
    grid = torch.cartesian_prod(*(torch.arange(20) for _ in range(3)))
    values = uniform(*grid.T)
    assert values.unique().numel() == 8000
    buckets = (values * 20).long().bincount()
    assert ((buckets - 400) ** 2 / 400).sum() < 43.8  # chi2(19) at 0.1 %


def test_no_rows_give_no_tokens() -> None:
    assert sampled(torch.zeros(0, 5)) == sampled(torch.zeros(0, 5), temperature=0.0) == []


def test_rows_are_drawn_beside_rows_that_are_not() -> None:
    logits = torch.randn(3, 30, generator=torch.Generator().manual_seed(1))
    columns = [torch.ones(3), torch.zeros(3, dtype=torch.int32), torch.ones(3), torch.zeros(3)]
    whole = [torch.full((3,), 9), torch.arange(3), torch.arange(3)]
    warm = sample(logits, *columns, *whole)
    columns[0] = torch.tensor([1.0, 0.0, 1.0])
    assert sample(logits, *columns, *whole).tolist() == [warm[0], logits[1].argmax(), warm[2]]


def test_a_tokens_share_of_draws_is_its_probability() -> None:
    """The draw in float64 on the same noise: one in 20,000 may fall on the other side."""
    logits = torch.randn(9, generator=torch.Generator().manual_seed(2)) * 4
    for temperature in (0.1, 1.0, 40.0):
        count = 20_000
        found = torch.tensor(
            sampled(logits.expand(count, -1).contiguous(), temperature, seed=5)
        ).bincount(minlength=9)
        noise = uniform(torch.full((count,), 5), torch.arange(count), torch.arange(count))
        kept = kept_reference(logits.tolist(), temperature, 0, 1.0, 0.0)
        expected = torch.zeros(9, dtype=torch.int64)
        before = 0.0
        for token, p in kept:
            expected[token] = ((noise > before) & (noise <= before + p)).sum()
            before += p
        assert (found - expected).abs().max() <= 1

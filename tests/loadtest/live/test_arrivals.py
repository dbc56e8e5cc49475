"""Arrival processes: their rate, how uneven they are, and that they repeat."""

from __future__ import annotations

from itertools import islice
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.live.arrivals import ARRIVALS, arrivals, constant, gamma, poisson

COUNT = 4000


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 1000), st.floats(0.2, 3), st.integers(0, 1 << 32))
def test_gamma_has_the_rate_and_the_variation_asked_for(rate: float, cv: float, seed: int) -> None:
    times = np.array(list(islice(gamma(rate, cv, Random(seed)), COUNT)))
    gaps = np.diff(times, prepend=0.0)
    assert (gaps >= 0).all()
    # Six standard errors: cv/sqrt(n) of the mean; of the CV itself, generously, the same times 3.
    assert gaps.mean() * rate == pytest.approx(1, abs=6 * cv / COUNT**0.5)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=18 * max(1, cv) / COUNT**0.5)


@settings(max_examples=10, deadline=None)
@given(st.floats(0.01, 1000), st.integers(0, 1 << 32))
def test_poisson_is_as_uneven_as_its_mean(rate: float, seed: int) -> None:
    gaps = np.diff(list(islice(poisson(rate, Random(seed)), COUNT)), prepend=0.0)
    assert gaps.mean() * rate == pytest.approx(1, abs=0.1)
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.15)


def test_constant_is_even() -> None:
    assert list(islice(constant(4.0), 4)) == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("kind", ARRIVALS)
def test_the_same_seed_gives_the_same_times(kind: str) -> None:
    assert kind in ("poisson", "gamma", "constant")
    one, other = (list(islice(arrivals(kind, 2.0, 2.5, Random(7)), 50)) for _ in range(2))
    assert one == other == sorted(one)

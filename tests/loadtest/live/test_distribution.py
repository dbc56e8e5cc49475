"""Percentiles beside numpy's, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.live import distribution as module
from loadtest.live.distribution import NOTHING, distribution

SECONDS = st.lists(st.floats(0, 1e4), min_size=1, max_size=200)


@settings(deadline=None, max_examples=30)
@given(SECONDS)
def test_percentiles_are_numpy_s(values: list[float]) -> None:
    found = distribution(values)
    for name, q in (("p50", 50), ("p90", 90), ("p95", 95), ("p99", 99)):
        assert found.percentile(name) == pytest.approx(np.percentile(values, q))
        one = getattr(found, name)
        assert min(values) <= one.low <= one.high <= max(values)
    assert found.count == len(values)
    assert found.percentile("mean") == pytest.approx(np.mean(values))
    assert found.percentile("largest") == max(values)


def test_nothing_is_nothing() -> None:
    assert distribution([]) is NOTHING and NOTHING.count == 0


def test_nothing_is_rounded() -> None:
    """Locust's own percentile of these is 0.02."""
    assert distribution([0.020147] * 10).p99.value == 0.020147


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(1)
    truth = np.log(2)
    held = 0
    for _ in range(60):
        one = distribution(random.exponential(size=150)).p50
        held += one.low <= truth <= one.high
    assert held >= 50


def test_a_seed_makes_the_same_intervals() -> None:
    values = np.random.default_rng(0).exponential(size=50)
    assert distribution(values, seed=3) == distribution(list(values), seed=3)


def test_many_values_have_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_RESAMPLED", 5)
    found = distribution(range(6))
    assert found.p90.low == found.p90.value == found.p90.high == 4.5

"""The steady-state window: no ramp, no drain, and no word about random ups and downs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.live.samples import Sample
from loadtest.live.window import concurrency, steady_window


def request(sent_s: float, end_s: float) -> Sample:
    return Sample("chat", sent_s, sent_s, "answered", end_s=end_s)


def closed_loop(users: int, seconds: float, each_s: float, ramp_s: float) -> list[Sample]:
    """Users who come over `ramp_s` and send one request after the other until `seconds`."""
    samples = []
    for user in range(users):
        at_s = ramp_s * user / users
        while at_s < seconds:
            samples.append(request(at_s, at_s + each_s))
            at_s += each_s
    return samples


def test_ramp_and_drain_are_left_out() -> None:
    samples = closed_loop(10, 100.0, 3.0, ramp_s=20.0)
    window = steady_window(samples, begin_s=0.0, until_s=100.0, ended_s=103.0)
    assert window.begin_s == pytest.approx(18.0) and window.end_s == 100.0
    assert window.in_flight_median == 10 and window.steady


def test_a_warm_up_is_left_out_at_least() -> None:
    samples = closed_loop(4, 50.0, 2.5, ramp_s=0.0)
    window = steady_window(samples, begin_s=15.0, until_s=50.0, ended_s=52.0)
    assert (window.begin_s, window.end_s) == (15.0, 50.0)


def test_random_arrivals_keep_their_window() -> None:
    random = np.random.default_rng(5)
    times = np.cumsum(random.exponential(0.5, size=400))
    samples = [request(at, at + float(random.exponential(4.0))) for at in times]
    until_s = float(times[-1])
    window = steady_window(samples, begin_s=0.0, until_s=until_s, ended_s=until_s + 30)
    assert window.begin_s < 0.15 * until_s and window.end_s > 0.9 * until_s
    assert window.steady


def test_requests_that_pile_up_are_not_steady() -> None:
    samples = [request(float(at), 1000.0) for at in range(100)]
    window = steady_window(samples, begin_s=0.0, until_s=100.0, ended_s=1000.0)
    assert not window.steady


def test_what_never_ended_is_in_flight_to_the_end() -> None:
    samples = [Sample("chat", 1.0, 1.0)]
    times, levels = concurrency(samples, ended_s=9.0)
    assert times.tolist() == [1.0, 9.0] and levels.tolist() == [1, 0]


@pytest.mark.parametrize(
    "samples", [[], [request(200.0, 201.0)]], ids=["no request", "after the window"]
)
def test_a_run_without_requests_has_an_empty_window(samples: list[Sample]) -> None:
    window = steady_window(samples, begin_s=0.0, until_s=100.0, ended_s=300.0)
    assert window.seconds == 0 and not window.holds(0.0)


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 50)), max_size=30),
    st.floats(0, 40),
    st.floats(50, 100),
)
def test_the_window_lies_in_the_run(
    spans: list[tuple[float, float]], begin_s: float, until_s: float
) -> None:
    samples = [request(sent, sent + length) for sent, length in spans]
    window = steady_window(samples, begin_s=begin_s, until_s=until_s, ended_s=200.0)
    assert begin_s <= window.begin_s <= window.end_s <= until_s
    assert 0 <= window.in_flight_median <= len(samples) and window.growth >= 0


@pytest.mark.parametrize("base", [0, 5])
def test_an_overload_is_told_whatever_ran_before_it(base: int) -> None:
    """Arrivals at twice the rate at which they are served, beside some that never end."""
    samples = [request(0.0, 1000.0) for _ in range(base)]
    samples += [request(float(at), 2.0 * at + 2.0) for at in range(120)]
    window = steady_window(samples, begin_s=0.0, until_s=120.0, ended_s=1000.0)
    assert not window.steady

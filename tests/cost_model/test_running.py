"""cost_model.running: spans in constant time are the sums they stand for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_model.costs import span_seconds
from cost_model.errors import CostError
from cost_model.model import PHASES, Phase
from cost_model.paper import Paper
from cost_model.running import RunningSeconds

WINDOW = 10_000
MODEL = Paper()
RUNNING = RunningSeconds(MODEL, WINDOW)


@given(st.sampled_from(PHASES), st.integers(0, WINDOW), st.integers(0, WINDOW))
def test_a_span_is_the_sum_of_its_tokens(phase: Phase, one: int, other: int) -> None:
    start, end = min(one, other), max(one, other)
    expected = sum(span_seconds(MODEL, phase, start, end).values())
    assert RUNNING.span(phase, start, end) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_beyond_the_window_nothing_counts() -> None:
    assert RUNNING.span("decode", 0, 2 * WINDOW) == RUNNING.span("decode", 0, WINDOW)
    assert RUNNING.span("decode", WINDOW, 2 * WINDOW) == 0


def test_bad_arguments() -> None:
    with pytest.raises(CostError, match="phase is 'training'"):
        RUNNING.span("training", 0, 1)  # type: ignore[arg-type]
    with pytest.raises(CostError, match="window_tokens is -1"):
        RunningSeconds(MODEL, -1)

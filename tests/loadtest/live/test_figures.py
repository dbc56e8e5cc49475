"""Figures of requests whose every moment is known."""

from __future__ import annotations

from array import array

import numpy as np
import pytest

from loadtest.live.figures import ALL, Figures, figures, gaps_s, is_good, output_tokens
from loadtest.live.samples import Sample
from loadtest.live.window import Window

WINDOW = Window(10.0, 20.0, 1)
LIMITS = {"first_token_s": 1.0, "time_per_output_token_s": 0.5}


def answered(
    sent_s: float, first_s: float, gap_s: float, chunks: int, tokens: int, workload: str = "chat"
) -> Sample:
    times = array("d", (sent_s + first_s + gap_s * n for n in range(chunks)))
    return Sample(
        workload,
        sent_s,
        sent_s,
        "answered",
        200,
        first_s=times[0],
        last_s=times[-1],
        end_s=times[-1] + 0.1,
        chunks_s=times,
        prompt_tokens=100,
        cached_tokens=64,
        output_tokens=tokens,
        counted=True,
    )


QUICK = answered(11.0, 0.5, 0.2, 5, 9)
"""Two tokens in a chunk, but for the first: 0.1 s per token."""
LATE = answered(12.0, 3.0, 0.2, 5, 5, "agent")
SLOW = answered(13.0, 0.5, 1.0, 3, 3)
REFUSED = Sample("chat", 14.0, 14.0, "refused", 429, "queue_full", end_s=14.1)
UNFINISHED = Sample("agent", 19.0, 19.0)
BEFORE = answered(5.0, 0.5, 1.0, 10, 10)
"""Sent before the window; chunks at 5.5 to 14.5, the last five of them in it."""
NO_BEATS = (np.empty(0), np.empty(0))
SAMPLES = [BEFORE, QUICK, LATE, SLOW, REFUSED, UNFINISHED]


@pytest.fixture
def found() -> Figures:
    return figures(
        SAMPLES,
        WINDOW,
        run_s=25.0,
        limits=LIMITS,
        lag=(np.array([0.001, 0.003]), np.array([0.0, 0.001])),
        cost=None,
        open_loop=False,
    )


def test_goodput_is_of_the_requests_sent(found: Figures) -> None:
    whole = found.all
    assert (whole.sent, whole.answered, whole.good, whole.failed) == (5, 3, 1, 2)
    assert whole.errors == {"queue_full": 1, "unfinished": 1}
    assert found.good_requests_per_s == 0.1
    assert found.good_output_tokens_per_s == pytest.approx(0.9)
    assert found.requests_in_all == 6


def test_latencies_by_their_definitions(found: Figures) -> None:
    whole = found.all
    assert whole.first_token.p50.value == pytest.approx(0.5)
    assert whole.first_token.largest == pytest.approx(3.0)
    assert whole.time_per_output_token.count == 3
    assert whole.time_per_output_token.p50.value == pytest.approx(0.2)
    assert whole.inter_token.count == 4 + 4 + 2
    assert whole.inter_token.mean == pytest.approx((8 * 0.2 + 2 * 1.0) / 10)
    assert whole.end_to_end.largest == pytest.approx(3.9)
    assert QUICK.time_per_output_token_s == pytest.approx(0.1)


def test_workloads_add_up(found: Figures) -> None:
    parts = [one for name, one in found.workloads.items() if name != ALL]
    assert set(found.workloads) == {ALL, "chat", "agent"}
    for name in ("sent", "answered", "good", "prompt_tokens", "cached_tokens", "output_tokens"):
        assert sum(getattr(part, name) for part in parts) == getattr(found.all, name)


def test_rates_are_of_what_came_in_the_window(found: Figures) -> None:
    # 5 tokens of the request before, and 9 + 5 + 3.
    assert output_tokens(SAMPLES, WINDOW) == pytest.approx(22)
    assert found.output_tokens_per_s == pytest.approx(2.2)
    # Four ended in it; three prompts got their first token in it.
    assert found.requests_per_s == pytest.approx(0.4)
    assert found.prompt_tokens_per_s == pytest.approx(30)


def test_limits_are_kept_up_to_themselves() -> None:
    one = answered(0.0, 1.0, 0.5, 3, 3)
    assert is_good(one, LIMITS) and is_good(one, {})
    assert not is_good(one, {**LIMITS, "end_to_end_s": 2.0})
    assert not is_good(answered(0.0, 1.0 + 1e-9, 0.1, 3, 3), LIMITS)
    assert is_good(answered(0.0, 0.1, 0.1, 1, 1), LIMITS), "one token has no time per token"
    assert not is_good(REFUSED, {}) and not is_good(UNFINISHED, {})


def test_an_answer_without_a_token_waits_to_its_end() -> None:
    silent = Sample("chat", 0.0, 0.0, "answered", end_s=2.0)
    assert not is_good(silent, LIMITS) and is_good(silent, {"first_token_s": 2.0})


def test_lateness_counts_in_an_open_loop_only(found: Figures) -> None:
    assert (
        found.sent_late.count == 0
        and found.lag.largest == 0.003
        and found.computing.largest == 0.001
    )
    late = Sample("chat", 11.0, 11.25, "answered", end_s=12.0)
    loop = figures([late], WINDOW, run_s=12.0, limits={}, lag=NO_BEATS, cost=None, open_loop=True)
    assert loop.sent_late.largest == 0.25 and loop.uncounted == 1


def test_no_requests_make_no_crash() -> None:
    none = figures(
        [], Window(0, 0), run_s=0.0, limits=LIMITS, lag=NO_BEATS, cost=None, open_loop=False
    )
    assert none.all.sent == 0 and none.output_tokens_per_s == 0 and gaps_s([]).size == 0


def test_good_rates_are_no_higher_than_all_rates() -> None:
    """Answers that end in the drain count for goodput, not for what came in the window."""
    samples = [answered(11.0, 0.5, 0.1, chunks, chunks) for chunks in (10, 200)]
    lag = np.array([]), np.array([])
    found = figures(samples, WINDOW, run_s=50.0, limits=LIMITS, lag=lag, cost=None, open_loop=False)
    assert found.all.good == 2
    assert found.good_requests_per_s == found.requests_per_s == 0.1
    assert found.good_output_tokens_per_s <= found.output_tokens_per_s

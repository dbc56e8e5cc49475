"""Which sessions come when."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from loadtest.live.exchange import Address
from loadtest.live.plan import Plan, PlanError, Sessions, within_window
from loadtest.live.profiles import PROFILES, Scale
from loadtest.live.service import Service
from loadtest.traces import TraceRequest

SERVICE = Service(
    address=Address("http", "a", 1, "/v1"),
    headers={},
    model="m",
    window_tokens=4096,
    metrics=None,
    extensions=True,
    counts_tokens=True,
    tokens_per_word=1.0,
)
TRACE = tuple(TraceRequest(float(at), 600, 10, (1, at)) for at in (0, 4, 6))


def test_a_trace_comes_at_its_times() -> None:
    plan = Plan(name="t", trace=TRACE, speed=2.0)
    sessions = list(Sessions(plan, SERVICE).schedule())
    assert [one.due_s for one in sessions] == [0.0, 2.0, 3.0]
    assert {one.workload for one in sessions} == {"trace"}
    prompts = [next(one.script).body["messages"][0]["content"] for one in sessions]
    assert len({prompt[:200] for prompt in prompts}) == 1 and len(set(prompts)) == 3
    assert plan.open_loop and "3 requests at the trace's times, 2 times as fast" in plan.about


def test_an_open_loop_mixes_by_weight_and_repeats() -> None:
    plan = Plan(name="mixed", parts=PROFILES["mixed"].parts, rate_per_s=10.0, scale=Scale(0.01))
    first, again = (list(islice(Sessions(plan, SERVICE).schedule(), 400)) for _ in range(2))
    assert [one[:2] for one in first] == [one[:2] for one in again]
    counts = Counter(one.workload for one in first)
    assert counts["chat"] > counts["agent"] > counts["agent-dropping"] > 0 < counts["long-context"]
    assert 30 < first[-1].due_s < 55
    assert "open loop, 10 sessions/s, poisson" in plan.about


def test_a_closed_loop_s_sessions_are_all_different() -> None:
    plan = Plan(name="chat", parts=PROFILES["chat"].parts, users=3)
    sessions = Sessions(plan, SERVICE)
    said = [next(sessions.next_script("chat")).body["messages"][1]["content"] for _ in range(5)]
    assert len(set(said)) == 5
    assert not plan.open_loop and list(sessions.schedule()) == []
    assert plan.about == "chat: closed loop, 3 users"


def test_a_trace_that_does_not_fit() -> None:
    longer = TraceRequest(9.0, 9000, 10)
    assert within_window([*TRACE, longer], 1.0, 4096) == TRACE
    with pytest.raises(
        PlanError, match=r"window of 4096 tokens: the shortest has 9,010 at scale 1"
    ):
        within_window([longer], 1.0, 4096)

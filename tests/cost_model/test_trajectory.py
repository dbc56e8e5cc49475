"""Tool loops, token by token against a literal simulation and against requests priced alone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_model.costs import request_cost
from cost_model.errors import CostError
from cost_model.paper import Paper
from cost_model.shape import V31, V32
from cost_model.trajectory import POLICIES, LoopCost, Policy, ToolLoop, loop_cost

MODEL = Paper(V32)
LOOP = ToolLoop(steps=4, prompt=1000, reasoning=300, call=50, tool_result=2000)


def lengths(cost: LoopCost) -> list[tuple[int, int, int]]:
    return [(step.prompt_tokens, step.cached_tokens, step.output_tokens) for step in cost.steps]


def test_kept_reasoning_makes_everything_cached_but_the_tool_result() -> None:
    assert lengths(loop_cost(MODEL, LOOP, "kept", 2.0)) == [
        (1000, 0, 350),
        (3350, 1350, 350),
        (5700, 3700, 350),
        (8050, 6050, 350),
    ]


def test_dropped_reasoning_moves_the_call_and_its_result() -> None:
    assert lengths(loop_cost(MODEL, LOOP, "dropped", 2.0)) == [
        (1000, 0, 350),
        (3050, 1000, 350),
        (5100, 3050, 350),
        (7150, 5100, 350),
    ]


def test_managed_drops_the_first_of_the_history_when_the_window_is_full() -> None:
    loop = ToolLoop(
        steps=6, prompt=100, reasoning=80, call=20, tool_result=100, window=1050, discard=0.75
    )
    assert lengths(loop_cost(MODEL, loop, "managed", 2.0)) == [
        (100, 0, 100),
        (300, 200, 100),
        (500, 400, 100),
        (700, 600, 100),
        (900, 800, 100),
        # 1,100 and 100 more do not fit: of five steps one stays, and only the prompt is cached.
        (300, 100, 100),
    ]
    kept = loop_cost(MODEL, loop, "kept", 2.0)
    assert len(kept.steps) == 5 and not kept.complete
    assert loop_cost(MODEL, loop, "managed", 2.0).complete


@pytest.mark.parametrize(
    ("discard", "steps_left"), [(0.9, 1), (0.8, 2), (0.7, 3), (0.75, 2), (1.0, 0), (0.05, 9)]
)
def test_the_share_that_managed_drops(discard: float, steps_left: int) -> None:
    """Ten steps of 20 tokens, then one that does not fit; 1 - 0.9 is less than 0.1 in binary."""
    loop = ToolLoop(
        steps=11, prompt=10, reasoning=5, call=5, tool_result=10, window=215, discard=discard
    )
    last = loop_cost(MODEL, loop, "managed", 2.0).steps[-1]
    assert (last.prompt_tokens, last.cached_tokens) == (10 + 20 * steps_left, 10)


small = st.integers(0, 400)
loops = st.builds(
    ToolLoop,
    steps=st.integers(1, 30),
    prompt=small,
    reasoning=small,
    call=small,
    tool_result=small,
    window=st.integers(1600, 6000),
    discard=st.floats(0.01, 1),
)


@settings(max_examples=40)
@given(loops, st.sampled_from(POLICIES))
def test_no_step_leaves_the_window_or_finds_more_cached_than_there_is(
    loop: ToolLoop, policy: Policy
) -> None:
    cost = loop_cost(MODEL, loop, policy, 2.0)
    assert 1 <= len(cost.steps) <= loop.steps
    assert cost.complete == (len(cost.steps) == loop.steps)
    assert cost.complete or policy != "managed"
    for step in cost.steps:
        assert 0 <= step.cached_tokens <= step.prompt_tokens
        assert step.prompt_tokens + step.output_tokens <= loop.window
        assert step.output_tokens == loop.reasoning + loop.call


@settings(max_examples=30)
@given(loops, st.sampled_from(POLICIES), st.floats(0.1, 50))
def test_a_loop_costs_what_its_requests_cost(loop: ToolLoop, policy: Policy, price: float) -> None:
    cost = loop_cost(MODEL, loop, policy, price)
    alone = [request_cost(MODEL, *step, price) for step in lengths(cost)]
    assert cost.usd == pytest.approx(sum(one.usd for one in alone), rel=1e-12)
    assert cost.seconds == pytest.approx(sum(one.seconds for one in alone), rel=1e-12)
    assert cost.usd == pytest.approx(cost.seconds * price / 3600, rel=1e-9)
    fresh = sum(prompt - cached for prompt, cached, _ in lengths(cost))
    assert cost.computed_tokens == fresh


@pytest.mark.parametrize("steps", [1, 2, 3, 17, 40])
def test_kept_computes_the_prompt_and_every_result_once(steps: int) -> None:
    cost = loop_cost(MODEL, ToolLoop(steps=steps, window=1 << 20), "kept", 2.0)
    assert cost.computed_tokens == 2000 + (steps - 1) * 4000


def test_the_loop_of_the_issue() -> None:
    """20 steps: keeping costs more tokens of context, dropping more prefill."""
    loop = ToolLoop(steps=20, reasoning=800, tool_result=4000)
    kept, dropped = (loop_cost(MODEL, loop, policy, 2.0) for policy in ("kept", "dropped"))
    assert kept.complete and dropped.complete
    assert dropped.computed_tokens - kept.computed_tokens == 19 * loop.call
    assert kept.steps[-1].prompt_tokens - dropped.steps[-1].prompt_tokens == 19 * loop.reasoning
    dense = loop_cost(Paper(V31), loop, "kept", 2.0)
    assert dense.usd > 2 * kept.usd


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps is 0; allowed: 1 to 10000"),
        ({"steps": 10_001}, "steps is 10001"),
        ({"steps": 1, "reasoning": -1}, "reasoning is -1; allowed: 0 and above"),
        ({"steps": 1, "tool_result": -4}, "tool_result is -4"),
        ({"steps": 1, "discard": 0.0}, "discard is 0.0; allowed: above 0, at most 1"),
        ({"steps": 1, "discard": 1.5}, "discard is 1.5"),
        ({"steps": 1, "discard": float("nan")}, "discard is nan"),
        ({"steps": 2, "window": 6899}, "window is 6899; allowed: at least one step, 6900 tokens"),
    ],
)
def test_absurd_loops_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(CostError, match=message):
        ToolLoop(**fields)


def test_an_answer_alone_needs_no_room_for_a_tool_result() -> None:
    cost = loop_cost(MODEL, ToolLoop(steps=1, window=2900), "kept", 2.0)
    assert cost.complete and lengths(cost) == [(2000, 0, 900)]
    with pytest.raises(CostError, match="at least one step, 2900 tokens"):
        ToolLoop(steps=1, window=2899)


def test_managed_drops_at_least_a_step_and_stays_in_the_window() -> None:
    loop = ToolLoop(steps=60, discard=1e-12)
    cost = loop_cost(MODEL, loop, "managed", 2.0)
    assert cost.complete
    assert max(prompt + output for prompt, _, output in lengths(cost)) <= loop.window


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(CostError, match="policy is 'forget'; allowed: kept, dropped, managed"):
        loop_cost(MODEL, LOOP, "forget", 2.0)  # type: ignore[arg-type]
    with pytest.raises(CostError, match="price is -2"):
        loop_cost(MODEL, LOOP, "kept", -2.0)

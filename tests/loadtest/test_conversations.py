from __future__ import annotations

from itertools import islice
from statistics import median

import pytest

from loadtest.conversations import (
    ConversationError,
    ConversationShape,
    Turn,
    conversation,
    conversations,
)

SHAPE = ConversationShape()


def test_lengths_keep_to_their_ranges_and_reach_both_ends() -> None:
    talks = [conversation(SHAPE, 0, agent, 1) for agent in range(150)]
    turns = [turn for talk in talks for turn in talk.turns]
    steps = [step for turn in turns for step in turn.steps]
    assert {len(talk.turns) for talk in talks} == set(range(3, 9))
    assert {len(turn.steps) for turn in turns} == set(range(3, 11))
    for lengths, (low, high) in (
        ([_reasoning(turn) for turn in turns], SHAPE.reasoning_tokens),
        ([step.result_tokens for step in steps], SHAPE.tool_result_tokens),
        ([step.call_tokens for step in steps], SHAPE.call_tokens),
        ([turn.answer_tokens for turn in turns], SHAPE.answer_tokens),
        ([turn.user_tokens for turn in turns], SHAPE.user_tokens),
    ):
        assert low <= min(lengths) < 1.2 * low
        assert 0.8 * high < max(lengths) <= high
    assert median(turn.think_s for turn in turns) == pytest.approx(20, rel=0.2)
    assert median(step.latency_s for step in steps) == pytest.approx(2, rel=0.1)


def _reasoning(turn: Turn) -> int:
    return turn.reasoning_tokens + sum(step.reasoning_tokens for step in turn.steps)


def test_reasoning_is_spread_over_a_turn_or_drawn_for_every_step() -> None:
    turn = conversation(SHAPE, 0, 0, 1).turns[0]
    each = [turn.reasoning_tokens, *(step.reasoning_tokens for step in turn.steps)]
    assert max(each) - min(each) <= 1
    shape = ConversationShape(reasoning_of="step")
    steps = [s for n in range(20) for t in conversation(shape, 0, n, 1).turns for s in t.steps]
    assert min(s.reasoning_tokens for s in steps) >= 200
    assert max(s.reasoning_tokens for s in steps) > 1800


def test_a_conversation_depends_on_seed_agent_and_number_alone() -> None:
    assert conversation(SHAPE, 1, 2, 3) == conversation(SHAPE, 1, 2, 3)
    others = {conversation(SHAPE, *which) for which in ((0, 2, 3), (1, 0, 3), (1, 2, 0))}
    assert conversation(SHAPE, 1, 2, 3) not in others
    first, second = islice(conversations(SHAPE, 1, 2), 2)
    assert (first, second) == (conversation(SHAPE, 1, 2, 0), conversation(SHAPE, 1, 2, 1))


def test_only_an_agents_first_conversation_has_a_past() -> None:
    pasts = [conversation(SHAPE, 0, agent, 0) for agent in range(60)]
    assert len({talk.turns_before for talk in pasts}) > 3
    assert all(talk.turns_before < len(talk.turns) for talk in pasts)
    assert not any(conversation(SHAPE, 0, agent, 1).turns_before for agent in range(20))


def test_without_spread_times_are_their_medians() -> None:
    shape = ConversationShape(think_sigma=0, tool_sigma=0)
    turn = conversation(shape, 0, 0, 1).turns[0]
    assert (turn.think_s, turn.steps[0].latency_s) == (20.0, 2.0)


@pytest.mark.parametrize(
    "fields",
    [
        {"turns": (0, 3)},
        {"tool_steps": (4, 3)},
        {"reasoning_tokens": (-5, 10)},
        {"think_median_s": -1.0},
        {"tool_sigma": float("inf")},
    ],
)
def test_an_impossible_shape_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ConversationError, match=next(iter(fields))):
        ConversationShape(**fields)  # type: ignore[arg-type]

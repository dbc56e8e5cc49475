from __future__ import annotations

from itertools import pairwise

import msgspec

from loadtest.agents import AgentSource
from loadtest.conversations import ConversationShape
from loadtest.sources import Request, TurnEnd
from loadtest.tokens import token_ids

SMALL = ConversationShape(
    system_tokens=30,
    turns=(2, 3),
    tool_steps=(1, 3),
    user_tokens=(3, 9),
    reasoning_tokens=(5, 20),
    call_tokens=(2, 4),
    tool_result_tokens=(4, 30),
    answer_tokens=(3, 9),
)


def agents(count: int = 3, window_tokens: int = 10_000) -> AgentSource:
    return AgentSource(
        SMALL, agents=count, seed=4, window_tokens=window_tokens, until_s=1e9, ramp_s=6.0
    )


def play(source: AgentSource, requests: int) -> list[tuple[Request, TurnEnd, float]]:
    """Requests of one agent alone, in order; each with its turn's end and the pause after it."""
    arrival = next(iter(source.begin()))
    seen = []
    for _ in range(requests):
        end, (following,) = source.ended(arrival.request, 100.0)
        assert end is not None
        seen.append((arrival.request, end, following.at_s - 100.0))
        arrival = following
    return seen


def common(one: list[int], other: list[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def test_a_tool_step_continues_the_prompt_and_what_was_said() -> None:
    seen = play(agents(), 60)
    kinds = {request.kind for request, _, _ in seen}
    assert kinds == {"first", "user", "tool"}
    for (before, end, _), (after, _, _) in pairwise(seen):
        said = token_ids(before.prompt) + token_ids(before.output)
        prompt = token_ids(after.prompt)
        assert len(prompt) == after.prompt_tokens
        if after.kind == "tool":
            assert end.why == "tool_calls"
            assert prompt[: len(said)] == said
        else:
            assert end.why == "answer"


def test_the_next_message_begins_with_the_form_that_was_announced() -> None:
    seen = play(agents(), 60)
    met = 0
    for (before, end, _), (after, _, _) in pairwise(seen):
        if end.why != "answer":
            continue
        assert end.next_prefix is not None and end.flip_token is not None
        form = token_ids(end.next_prefix)
        said = token_ids(before.prompt) + token_ids(before.output)
        assert common(form, said) == end.flip_token
        assert len(form) < len(said)
        if after.kind == "user":
            met += 1
            assert token_ids(after.prompt)[: len(form)] == form
    assert met > 5


def test_conversations_share_the_system_text_and_no_more() -> None:
    first, second, third = (token_ids(a.request.prompt) for a in agents().begin())
    assert common(first, second) == common(second, third) == SMALL.system_tokens


def test_agents_enter_over_the_ramp_and_tenants_take_turns() -> None:
    source = AgentSource(
        SMALL, agents=4, seed=0, window_tokens=10_000, until_s=9, tenants=2, ramp_s=8.0
    )
    arrivals = list(source.begin())
    assert [one.at_s for one in arrivals] == [0.0, 2.0, 4.0, 6.0]
    assert [one.request.tenant for one in arrivals] == ["0", "1", "0", "1"]


def test_a_conversation_ends_where_the_window_does() -> None:
    seen = play(agents(window_tokens=150), 80)
    assert all(one.prompt_tokens + one.output_tokens <= 150 for one, _, _ in seen)
    assert sum(one.kind == "first" for one, _, _ in seen) > 10


def test_who_is_refused_comes_back_with_the_same_request() -> None:
    source = agents()
    request = next(iter(source.begin())).request
    (again,) = source.refused(request, 5.0, 1.5)
    assert (again.at_s, again.request) == (6.5, request)
    assert source.refused(request, 1e9, 1.0) == ()


def test_the_working_set_counts_every_form_and_the_system_text_once() -> None:
    source = agents(1)
    arrival = next(iter(source.begin()))
    texts: set[tuple[int, ...]] = set()
    begun = 0
    for _ in range(40):
        request = arrival.request
        text = token_ids(request.prompt)[:-1]
        if request.kind == "first":
            texts.clear()
            begun += 1
        texts |= {tuple(text[:n]) for n in range(1, len(text) + 1)}
        if begun > 1:  # the first conversation has a history that nobody saw
            assert source.working_set_tokens == len(texts)
        said = [*text, 0, *token_ids(request.output)]  # 0 opens the reasoning
        texts |= {tuple(said[:n]) for n in range(1, len(said) + 1)}
        _, (arrival,) = source.ended(request, 0.0)
    assert begun > 3


def test_without_thinking_nothing_is_dropped() -> None:
    plain = msgspec.structs.replace(SMALL, reasoning_tokens=(0, 0))
    source = AgentSource(plain, agents=1, seed=0, window_tokens=10_000, until_s=1e9)
    seen = play(source, 30)
    for (before, end, _), (after, _, _) in pairwise(seen):
        assert (end.flip_token, end.next_prefix) == (None, None)
        said = token_ids(before.prompt) + token_ids(before.output)
        if after.kind != "first":
            assert token_ids(after.prompt)[: len(said)] == said

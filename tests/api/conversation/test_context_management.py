"""Tool loops that outgrow the window: what goes, what stays, and the same again next time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.chat.encoding import Encoder
from api.chat.messages import Message, ToolCall
from api.conversation.context_management import (
    MAX_SUMMARIES,
    SUMMARY_HEADING,
    ContextManagement,
    Managed,
    PromptSizes,
    Summaries,
    SummaryNeeded,
    manage,
)
from api.errors import ApiError
from tests.api.scripted_engine import Scripted, body

SYSTEM, USER = Message("system", "Be brief."), Message("user", "Find it.")
WINDOW_TOKENS = 1000


class Lengths:
    """PromptSizes whose tokens are characters."""

    def prompt(self, messages: Sequence[Message]) -> int:
        return sum(len(message.content) for message in messages)

    step = prompt

    def start(self, message: Message) -> int:
        return len(message.content)


def step(number: int, length: int) -> list[Message]:
    """A call and its result, `length` characters together."""
    call = ToolCall(f"call_{number}", "look", "{}")
    asks = Message("assistant", "", reasoning="hm", tool_calls=(call,))
    return [asks, Message("tool", f"{number:03d}".ljust(length, "."), tool_call_id=call.id)]


def history(*lengths: int, question: int = 100) -> list[Message]:
    steps = [message for place, n in enumerate(lengths) for message in step(place, n)]
    return [Message("user", "q" * question), *steps]


def managed(messages: list[Message], strategy: Any = "discard_all", **fields: Any) -> Managed:
    return manage(
        messages,
        ContextManagement(strategy, **fields),
        Lengths(),  # type: ignore[arg-type]
        window_tokens=WINDOW_TOKENS,
        summary=lambda key: None,
    )


def steps_left(found: Managed) -> list[int]:
    return [int(m.content[:3]) for m in found.messages if m.role == "tool"]


def test_the_first_prompt_above_the_trigger_is_cut() -> None:
    window = 131_072
    for question, resets in ((104_857 - 10, 0), (104_858 - 10, 1)):
        found = manage(
            history(10, question=question),
            ContextManagement("discard_all"),
            Lengths(),  # type: ignore[arg-type]
            window_tokens=window,
            summary=lambda key: None,
        )
        assert len(found.applied) == resets


def test_discard_all_leaves_the_question() -> None:
    found = managed([SYSTEM, *history(300, 300, 300)])
    assert [message.role for message in found.messages] == ["system", "user"]
    (applied,) = found.applied
    assert (applied.strategy, applied.removed_steps, applied.removed_tokens) == (
        "discard_all",
        3,
        900,
    )


def test_discard_75_leaves_the_last_quarter() -> None:
    found = managed(history(*[100] * 8), "discard_75")
    assert steps_left(found) == [6, 7]
    assert found.applied[0].removed_steps == 6
    # Of one step a quarter cannot be kept.
    assert steps_left(managed(history(900), "discard_75")) == []


def test_what_was_decided_is_decided_again_when_the_history_grows() -> None:
    lengths = [250, 100, 300, 200, 90, 400, 500, 120, 60, 300]
    seen: list[list[Any]] = []
    for steps in range(1, len(lengths) + 1):
        found = managed(history(*lengths[:steps]), "discard_75")
        seen.append([msgspec.to_builtins(applied) for applied in found.applied])
        kept = steps_left(found)
        assert kept == list(range(steps - len(kept), steps)), "the last ones, whole"
        assert 100 + sum(lengths[place] for place in kept) <= 800
    for before, after in pairwise(seen):
        assert after[: len(before)] == before


def test_earlier_turns_and_the_system_message_stay() -> None:
    first = [Message("user", "a" * 300), *step(0, 200), Message("assistant", "Found.")]
    found = managed([SYSTEM, *first, *history(250, 200)])
    assert found.messages[: len(first) + 2] == [SYSTEM, *first, Message("user", "q" * 100)]
    assert len(found.messages) == len(first) + 2


def test_below_the_trigger_nothing_changes() -> None:
    messages = history(100, 100)
    assert managed(messages) == Managed(messages, [])
    # Neither does anything where there is no step to drop.
    long = [Message("user", "x" * 990)]
    assert managed(long) == Managed(long, [])


def test_reserved_room_counts_as_prompt() -> None:
    assert not managed(history(600)).applied
    assert managed(history(600), reserved_tokens=101).applied


def test_resets_can_be_limited() -> None:
    messages = history(800, 800, 800)
    assert len(managed(messages).applied) == 3
    found = managed(messages, max_resets=1)
    assert len(found.applied) == 1 and steps_left(found) == [1, 2]
    assert not managed(messages, max_resets=0).applied


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(3, 700), min_size=1, max_size=12),
    st.sampled_from(["discard_all", "discard_75"]),
    st.integers(0, 900),
)
def test_steps_are_never_split_and_order_is_kept(
    lengths: list[int], strategy: Any, question: int
) -> None:
    found = managed(history(*lengths, question=question), strategy)
    kept = steps_left(found)
    assert kept == sorted(kept)
    assert len(kept) + sum(applied.removed_steps for applied in found.applied) == len(lengths)
    assert [m.role for m in found.messages] == ["user", *["assistant", "tool"] * len(kept)]
    total = question + sum(lengths[place] for place in kept)
    assert total <= 800 or not kept


@pytest.mark.parametrize("thinking", [True, False])
def test_the_size_of_a_step_is_what_it_adds(encoder: Encoder, thinking: bool) -> None:
    sizes = PromptSizes(encoder, None, thinking)
    messages = [SYSTEM, USER, *step(0, 10), *step(1, 20)]
    assert sizes.prompt(messages) == (
        sizes.prompt(messages[:2]) + sizes.step(messages[2:4]) + sizes.step(messages[4:])
    )


def test_summaries_are_bounded_and_the_first_one_stays() -> None:
    summaries = Summaries(1000)
    summaries.put(b"a", "first")
    summaries.put(b"a", "second")
    assert summaries.get(b"a") == "first"
    for number in range(20):
        summaries.put(bytes([number]), "x" * 50)
        assert summaries.size_bytes <= 1000
    assert summaries.get(b"a") is None and summaries.get(bytes([19])) == "x" * 50


def test_a_summary_stands_behind_the_question_and_holds_the_one_before() -> None:
    texts: dict[bytes, str] = {}
    asked: list[list[Message]] = []

    def run(messages: list[Message]) -> Managed:
        while True:
            try:
                return manage(
                    messages,
                    ContextManagement("summary"),
                    Lengths(),  # type: ignore[arg-type]
                    window_tokens=WINDOW_TOKENS,
                    summary=texts.get,
                )
            except SummaryNeeded as needed:
                asked.append(needed.trajectory)
                texts[needed.key] = f"summary {len(asked)}"

    found = run(history(400, 400))
    assert found.messages[-1].content == "q" * 100 + SUMMARY_HEADING + "summary 1"
    assert found.applied[0].summary == "summary 1"
    again = run(history(400, 400, 300, 450))
    assert len(asked) == 2, "the first was made once"
    assert asked[1][0].content.endswith("summary 1")
    assert again.messages[-1].content == "q" * 100 + SUMMARY_HEADING + "summary 2"
    assert run(history(400, 400, 300, 450)) == again and len(asked) == 2


# Through the service.

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def loop(*lengths: int) -> list[Any]:
    messages: list[Any] = [{"role": "user", "content": "Find it."}]
    for place, length in enumerate(lengths):
        function = {"name": "look", "arguments": "{}"}
        call = {"id": f"call_{place}", "type": "function", "function": function}
        messages += [
            {"role": "assistant", "tool_calls": [call], "reasoning_content": f"thought {place}"},
            {"role": "tool", "tool_call_id": call["id"], "content": "x" * length},
        ]
    return messages


def ask(scripted: Scripted, messages: list[Any], **fields: Any) -> dict[str, Any]:
    fields = {"tools": [TOOL], "thinking": {"type": "enabled"}} | fields
    return asyncio.run(scripted.complete(messages=messages, **fields))


def text_of(scripted: Scripted) -> str:
    return scripted.service.decode(scripted.engine.submits[-1].token_ids)


def test_the_answer_says_what_was_dropped(scripted: Scripted) -> None:
    rule = {"strategy": "discard_all"}
    short = ask(scripted, loop(100), context_management=rule)
    assert short["context_management"] == {"applied": []}
    cut = ask(scripted, loop(900, 900, 900, 100), context_management=rule)
    (applied,) = cut["context_management"]["applied"]
    assert applied["removed_steps"] == 3 and applied["removed_tokens"] > 2700
    assert "thought 3" in text_of(scripted) and "thought 2" not in text_of(scripted)
    assert "context_management" not in ask(scripted, loop(100))
    (turn,) = {turn.next_prefix is None for turn in scripted.engine.turns[1:2]}
    assert turn, "the next prompt is not this one without its reasoning"


def test_the_stream_says_it_in_its_first_chunk(scripted: Scripted) -> None:
    fields: Any = {"tools": [TOOL], "context_management": {"strategy": "discard_75"}}
    chunks = asyncio.run(scripted.stream(messages=loop(*[900] * 4), **fields))
    # Three quarters of the three steps that are too much.
    assert chunks[0]["context_management"]["applied"][0]["removed_steps"] == 2
    assert all("context_management" not in chunk for chunk in chunks[1:])


def test_a_history_longer_than_the_window_is_cut_to_fit(scripted: Scripted) -> None:
    messages = loop(*[1000] * 9)
    with pytest.raises(ApiError, match="window") as caught:
        ask(scripted, messages)
    assert caught.value.code == "context_length_exceeded"
    answer = ask(scripted, messages, context_management={"strategy": "discard_all"})
    assert len(answer["context_management"]["applied"]) == 3
    assert len(scripted.engine.submits[-1].token_ids) < 0.8 * 4096


def test_a_summary_is_made_once(scripted: Scripted) -> None:
    scripted.replies = ["It is not in the hall."]
    rule = {"strategy": "summary"}
    first = ask(scripted, loop(1000, 1000, 900), context_management=rule)
    summary, answer = scripted.engine.submits
    assert summary.sampling.temperature == 0.0
    assert summary.sampling.logit_bias[scripted.encoder.dsml_token_id] == -100.0
    instruction = "Summarise the work above"
    assert instruction in scripted.service.decode(summary.token_ids)
    assert "Find it." + SUMMARY_HEADING + "It is not in the hall." in text_of(scripted)
    (applied,) = first["context_management"]["applied"]
    assert applied["summary"] == "It is not in the hall." and applied["removed_steps"] == 3

    scripted.replies = ["Something else."]
    second = ask(scripted, loop(1000, 1000, 900), context_management=rule)
    assert len(scripted.engine.submits) == 3, "no second summary"
    assert scripted.engine.submits[-1].token_ids == answer.token_ids
    assert second["context_management"] == first["context_management"]
    ask(scripted, loop(1000, 1000, 900, 10), context_management=rule)
    assert scripted.engine.submits[-1].token_ids[: len(answer.token_ids)] == answer.token_ids


def test_summaries_are_not_shared_between_users(scripted: Scripted) -> None:
    rule = {"strategy": "summary"}
    for user in ("anna", "bert"):
        ask(scripted, loop(1000, 1000, 900), context_management=rule, user_id=user)
    assert len(scripted.engine.submits) == 4


def test_steps_too_long_to_summarise_are_refused(scripted: Scripted) -> None:
    with pytest.raises(ApiError, match="window") as caught:
        ask(scripted, loop(4090), context_management={"strategy": "summary"})
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")
    assert caught.value.param == "context_management.strategy"


def test_a_summary_is_waited_for_within_the_deadline(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    charged: list[int] = []
    monkeypatch.setattr("api.conversation.summary.charge_tokens", charged.append)
    scripted.engine.gate.clear()
    rule = {"strategy": "summary"}
    request = body(messages=loop(1000, 1000, 900), tools=[TOOL], context_management=rule)
    with pytest.raises(ApiError, match=r"within the 0\.01 s") as caught:
        asyncio.run(scripted.service.start(request, deadline_s=0.01))
    assert (caught.value.status, caught.value.code) == (503, "deadline_missed")
    assert scripted.engine.open == 0
    assert scripted.engine.aborts == [submit.id for submit in scripted.engine.submits]
    assert charged == [len(submit.token_ids) for submit in scripted.engine.submits]


def test_many_summaries_at_once_are_refused(scripted: Scripted) -> None:
    with pytest.raises(ApiError, match="more than 4 summaries") as caught:
        ask(scripted, loop(*[3100] * 6), context_management={"strategy": "summary"})
    assert (caught.value.status, caught.value.param) == (400, "context_management.strategy")


@pytest.mark.parametrize(
    ("rule", "param"),
    [
        ({}, "context_management.strategy"),
        ({"strategy": "forget"}, "context_management.strategy"),
        ({"strategy": "summary", "trigger": 0}, "context_management.trigger"),
        ({"strategy": "summary", "trigger": 1.5}, "context_management.trigger"),
        ({"strategy": "summary", "max_resets": -1}, "context_management.max_resets"),
        ({"strategy": "summary", "reserved_tokens": 10**6}, "context_management.reserved_tokens"),
        ("summary", "context_management"),
    ],
)
def test_refusals_name_the_field(scripted: Scripted, rule: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        ask(scripted, loop(10), context_management=rule)
    assert (caught.value.status, caught.value.param) == (400, param)


class CountedLengths(Lengths):
    """Lengths that knows how many characters it was asked to measure."""

    def __init__(self) -> None:
        self.measured = 0

    def prompt(self, messages: Sequence[Message]) -> int:
        found = super().prompt(messages)
        self.measured += found
        return found

    step = prompt


def test_work_grows_with_the_history_alone() -> None:
    """A loop of very many steps, with a reset in almost every one, is measured once."""
    messages = history(*[20] * 20_000, question=WINDOW_TOKENS)
    sizes = CountedLengths()
    found = manage(
        messages,
        ContextManagement("discard_all"),
        sizes,  # type: ignore[arg-type]
        window_tokens=WINDOW_TOKENS,
        summary=lambda key: None,
    )
    assert steps_left(found) == []
    assert sum(entry.removed_tokens for entry in found.applied) == 20 * 20_000
    assert sizes.measured <= 3 * sum(len(message.content) for message in messages)


def test_summaries_of_one_turn_have_a_limit() -> None:
    """A question longer than the window asks for a summary at every step."""
    messages = history(*[20] * (MAX_SUMMARIES + 9), question=WINDOW_TOKENS)
    found = manage(
        messages,
        ContextManagement("summary"),
        Lengths(),  # type: ignore[arg-type]
        window_tokens=WINDOW_TOKENS,
        summary=lambda key: "done",
    )
    assert len(found.applied) == MAX_SUMMARIES
    assert len(steps_left(found)) == 9


def test_a_managed_history_is_played_beside_the_event_loop(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def noted(*arguments: Any, **options: Any) -> Managed:
        threads.append(threading.current_thread())
        return manage(*arguments, **options)

    monkeypatch.setattr("api.conversation.prepare.manage", noted)
    asyncio.run(scripted.complete(context_management={"strategy": "discard_all"}))
    assert threads and threading.main_thread() not in threads

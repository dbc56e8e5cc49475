"""What the engine is told about the next user message, against the prompt that really comes."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from api.chat.encoding import Encoder
from api.chat.messages import Message, ToolCall, normalise_history
from api.conversation.next_turn import INLINE_CHARACTERS, next_prefix
from scheduler.retention import flip_point
from tests.api.scripted_engine import Scripted
from tests.api.test_service import CALL, TOOL

USER = Message("user", "What day is it?")
CALLS = Message(
    "assistant",
    "Let me see.",
    reasoning="dates, dates",
    tool_calls=(ToolCall("b", "get_date", "{}"), ToolCall("a", "add", '{"x": [1, "two"]}')),
)
RESULTS = (
    Message("tool", "2", tool_call_id="a"),
    Message("tool", "Monday", tool_call_id="b"),
)
HISTORIES: dict[str, list[Message]] = {
    "one message": [USER],
    "a system message": [Message("system", "Be brief."), USER],
    "a former turn": [USER, Message("assistant", "Monday.", reasoning="hm"), USER],
    "a tool loop": [Message("system", "Be brief."), USER, CALLS, *RESULTS],
    "two tool steps": [
        USER,
        CALLS,
        *RESULTS,
        Message("assistant", reasoning="", tool_calls=(ToolCall("c", "get_date", "{}"),)),
        Message("tool", "Tuesday", tool_call_id="c"),
    ],
    "a former tool loop": [USER, CALLS, *RESULTS, Message("assistant", "So.", reasoning="r"), USER],
}


@pytest.mark.parametrize("answer", ["It is Monday.", "", " \n<think>x</think> 日 <｜User｜>"])
@pytest.mark.parametrize("tools", [None, [TOOL["function"]]], ids=["plain", "tools"])
@pytest.mark.parametrize("messages", HISTORIES.values(), ids=HISTORIES)
def test_the_next_prompt_starts_with_it(
    encoder: Encoder, messages: list[Message], tools: Any, answer: str
) -> None:
    prompt = encoder.encode(normalise_history(messages), tools=tools, thinking=True)
    found = next_prefix(encoder, prompt, messages, answer)
    assert found is not None
    said = [*messages, Message("assistant", answer, reasoning="hm"), Message("user", "And then?")]
    for thinking in (True, False):
        after = encoder.encode(normalise_history(said), tools=tools, thinking=thinking).token_ids
        assert after[: len(found)] == found
        rest = encoder.tokenizer.decode(after[len(found) :], skip_special_tokens=False)
        assert rest.startswith("And then?"), "all that is known before the message comes"
    flip = flip_point(prompt.spans)
    assert found[:flip] == prompt.token_ids[:flip] and len(found) > flip
    assert found[flip] == encoder.think_end_token_id


def test_without_a_user_message_there_is_none(encoder: Encoder) -> None:
    messages = [CALLS, *RESULTS]
    prompt = encoder.encode(messages, thinking=True)
    assert next_prefix(encoder, prompt, messages, "So.") is None


@pytest.mark.parametrize(
    ("fields", "reply", "ends"),
    [
        ({}, "Monday", True),
        ({"reasoning_effort": "low", "n": 2}, "hm</think>Monday", True),
        ({"reasoning_effort": "low"}, "hm</think>Monday", False),
        ({"reasoning_effort": "low", "tools": [TOOL]}, "hm</think>" + CALL, True),
    ],
    ids=["chat mode only grows", "several choices", "cut off", "tool calls"],
)
def test_other_ends_have_no_next_prefix(
    scripted: Scripted, fields: dict[str, Any], reply: str, ends: bool
) -> None:
    scripted.replies, scripted.ends = [reply], ends
    asyncio.run(scripted.complete(**fields))
    assert scripted.engine.turns and all(t.next_prefix is None for t in scripted.engine.turns)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stop", [None, "day"])
@pytest.mark.parametrize("padding", [0, INLINE_CHARACTERS])
def test_what_the_client_saw_is_what_is_warmed(
    scripted: Scripted, stream: bool, stop: str | None, padding: int
) -> None:
    """A stop string cuts the answer; a long turn is encoded on a thread; the stream is the same."""
    scripted.replies = ["hm</think>On Monday, that is."]
    scripted.engine.ready = msgspec.structs.replace(
        scripted.engine.ready, max_model_len=4 * INLINE_CHARACTERS
    )
    scripted.service = type(scripted.service)(
        scripted.engine,  # type: ignore[arg-type]
        scripted.encoder,
        scripted.service.facts.names,
        scripted.service.facts.defaults,
    )
    user = {"role": "user", "content": "Which day?" + " " * padding}
    fields = {"messages": [user], "reasoning_effort": "low", "stop": stop}

    async def talk() -> list[int]:
        answer = scripted.stream(**fields) if stream else scripted.complete(**fields)
        await answer
        while not scripted.engine.turns:
            await asyncio.sleep(0)
        text = "On Monday, that is." if stop is None else "On Mon"
        said = {"role": "assistant", "content": text, "reasoning_content": "hm"}
        again = {"messages": [user, said, {"role": "user", "content": "Thanks"}]}
        await scripted.complete(**fields | again)
        return scripted.engine.submits[1].token_ids

    after = asyncio.run(talk())
    found = scripted.engine.turns[0].next_prefix
    assert found is not None and after[: len(found)] == found


def test_an_engine_that_cannot_use_it_is_not_given_any(scripted: Scripted) -> None:
    scripted.engine.ready = msgspec.structs.replace(scripted.engine.ready, pre_warms=False)
    scripted.replies = ["hm</think>Monday"]
    asyncio.run(scripted.complete(reasoning_effort="low"))
    (turn,) = scripted.engine.turns
    assert turn.why == "answer" and turn.next_prefix is None

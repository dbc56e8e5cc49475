"""Clients that send tool output as user messages: recognised, counted, and kept if asked."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from api.chat.messages import Message
from api.config import ChatConfig
from api.conversation.simulated_tools import (
    is_tool_output,
    keep_until_marker,
    read_markers,
    simulated_results,
)
from api.errors import ApiError
from api.service import ChatService
from engine.client import GenerationDefaults
from tests.api.scripted_engine import MODEL, Scripted

SCREEN = "New Terminal Output:\n$ ls\na.py"
TASK = {"role": "user", "content": "List the files."}
STEP = {"role": "assistant", "content": "ls", "reasoning_content": "hm"}
OUTPUT = {"role": "user", "content": SCREEN}
UNTIL: Any = {"thinking_retention": "until_marker", "reasoning_effort": "high"}


def text_of(scripted: Scripted, messages: list[Any], **fields: Any) -> str:
    asyncio.run(scripted.complete(messages=messages, **fields))
    return scripted.service.decode(scripted.engine.submits[-1].token_ids)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SCREEN, True),
        ("[read_file for 'a.py'] Result:\n1 | x", True),
        ("[execute_command for 'ls'] Result:", True),
        ("<tool_response>{}</tool_response>", True),
        ("[1, 2] are numbers", False),
        ("[see] below\n] Result:", False),
        ("What is New Terminal Output:?", False),
        ("", False),
    ],
)
def test_known_clients_are_recognised(text: str, expected: bool) -> None:
    assert is_tool_output(text) is expected


def test_own_markers_replace_the_known_ones() -> None:
    assert is_tool_output("OUT: x", ["OUT:"]) and not is_tool_output(SCREEN, ["OUT:"])


def test_the_first_user_message_is_never_tool_output() -> None:
    messages = [Message("user", SCREEN), Message("assistant", "ls"), Message("user", SCREEN)]
    assert simulated_results(messages) == 1
    marked = keep_until_marker(messages, (), thinking=True)
    assert [message.continues_turn for message in marked] == [False, False, True]


def test_by_default_they_end_the_turn_and_are_counted(scripted: Scripted) -> None:
    messages = [TASK, STEP, OUTPUT, STEP, OUTPUT]
    text = text_of(scripted, messages, reasoning_effort="high")
    assert "hm" not in text
    assert text == text_of(scripted, messages, reasoning_effort="high", thinking_retention="auto")
    assert text == text_of(
        scripted, messages, reasoning_effort="high", thinking_retention="by_role"
    )
    counts = scripted.service.conversations.counts
    assert (counts.simulated_tool_requests, counts.simulated_tool_messages) == (3, 6)
    # In chat mode nothing is lost, so there is nothing to count.
    text_of(scripted, messages)
    assert counts.simulated_tool_requests == 3


def test_until_marker_keeps_the_turn_alive(scripted: Scripted) -> None:
    text = text_of(scripted, [TASK, STEP, OUTPUT, STEP, OUTPUT], **UNTIL)
    turn = f"<think>hm</think>ls<｜end▁of▁sentence｜><｜User｜>{SCREEN}<｜Assistant｜>"
    assert text.endswith(f"<｜User｜>List the files.<｜Assistant｜>{turn}{turn}<think>")
    assert scripted.service.conversations.counts.simulated_tool_requests == 0
    # All of it is there for the next prompt, and so it is awaited.
    (turn_ended,) = scripted.engine.turns
    assert turn_ended.why == "tool_calls" and turn_ended.next_prefix is None


def test_each_prompt_of_such_a_turn_starts_with_the_one_before(scripted: Scripted) -> None:
    scripted.replies = ["hm</think>ls"]
    messages: list[Any] = [TASK]
    sequence: list[int] = []
    for _ in range(3):
        text_of(scripted, messages, **UNTIL)
        submit = scripted.engine.submits[-1]
        assert submit.token_ids[: len(sequence)] == sequence
        sequence = submit.token_ids + scripted.engine.script(submit, 0)
        messages += [STEP, OUTPUT]


def test_a_person_still_ends_the_turn(scripted: Scripted) -> None:
    person = {"role": "user", "content": "Stop that."}
    text = text_of(scripted, [TASK, STEP, OUTPUT, STEP, person], **UNTIL)
    assert "hm" not in text
    text = text_of(scripted, [TASK, STEP, OUTPUT, STEP, person, STEP, OUTPUT], **UNTIL)
    assert text.count("hm") == 1


def test_reasoning_that_such_clients_drop_is_an_empty_thought(scripted: Scripted) -> None:
    bare = {"role": "assistant", "content": "ls"}
    text = text_of(scripted, [TASK, bare, OUTPUT], **UNTIL)
    assert "<think></think>ls" in text


def test_markers_of_the_request_and_of_the_server(scripted: Scripted) -> None:
    own = {"role": "user", "content": "OUT: a.py"}
    assert "hm" not in text_of(scripted, [TASK, STEP, own], **UNTIL)
    assert "hm" in text_of(scripted, [TASK, STEP, own], **UNTIL, retention_marker="OUT:")
    assert "hm" in text_of(scripted, [TASK, STEP, own], **UNTIL, retention_marker=["IN:", "OUT:"])
    config = ChatConfig(tool_output_markers=("OUT:",))
    scripted.service = ChatService(
        scripted.engine,  # type: ignore[arg-type]
        scripted.encoder,
        (MODEL,),
        GenerationDefaults(),
        config,
    )
    assert "hm" in text_of(scripted, [TASK, STEP, own], **UNTIL)


def test_markers_are_nothing_without_the_policy() -> None:
    assert read_markers(None, None) is read_markers("auto", None) is None
    assert read_markers("until_marker", None) == ()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"retention_marker": "x"}, "retention_marker"),
        ({"retention_marker": "x", "thinking_retention": "by_role"}, "retention_marker"),
        ({**UNTIL, "retention_marker": ""}, "retention_marker"),
        ({**UNTIL, "retention_marker": ["x"] * 17}, "retention_marker"),
        ({**UNTIL, "retention_marker": "x" * 1001}, "retention_marker"),
        ({**UNTIL, "retention_marker": [1]}, "retention_marker[...]"),
        ({"thinking_retention": "all"}, "thinking_retention"),
    ],
)
def test_refusals_name_the_field(scripted: Scripted, fields: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        asyncio.run(scripted.complete(messages=[TASK], **fields))
    assert caught.value.status == 400
    assert (caught.value.param or "").startswith(param.removesuffix("[...]"))

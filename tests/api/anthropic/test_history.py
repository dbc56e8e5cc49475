"""Anthropic's blocks become the conversation that the retention rule is applied to."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from api.anthropic.history import read_conversation
from api.anthropic.schema import MessageParam, TextParam
from api.chat.messages import Message, ToolCall
from api.errors import ApiError


def conversation(*messages: dict[str, Any], system: str | list[TextParam] | None = None) -> Any:
    return read_conversation(system, msgspec.convert(list(messages), list[MessageParam]))


def user(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def result(call_id: str, content: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call_id, "content": content}


def test_plain_text() -> None:
    found = conversation({"role": "user", "content": "hi"}, system="Be brief.")
    assert found.messages == [Message("system", "Be brief."), Message("user", "hi")]
    assert found.paths == ["system", "messages[0]"]


def test_the_system_text_may_come_in_blocks() -> None:
    found = conversation(user(text("hi")), system=[TextParam("One."), TextParam("Two.")])
    assert found.messages[0] == Message("system", "One.\n\nTwo.")


def test_an_assistant_message_of_blocks() -> None:
    call = {"type": "tool_use", "id": "c1", "name": "find", "input": {"b": 1, "a": [None]}}
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "x"}
    found = conversation(
        user(text("q")), {"role": "assistant", "content": [thought, text("So"), call]}
    )
    assert found.messages[1] == Message(
        "assistant",
        "So",
        reasoning="Hm.",
        tool_calls=(ToolCall("c1", "find", '{"b":1,"a":[null]}'),),
    )


def test_tool_results_are_tool_messages_in_their_order() -> None:
    found = conversation(user(result("c2", "two"), result("c1", [text("one"), text("more")])))
    assert found.messages == [
        Message("tool", "two", tool_call_id="c2"),
        Message("tool", "one\n\nmore", tool_call_id="c1"),
    ]
    assert found.paths == ["messages[0]", "messages[0]"]


@pytest.mark.parametrize("first", [True, False])
def test_a_reminder_beside_a_result_starts_no_new_turn(first: bool) -> None:
    """As a user message it would be the last one, and the running turn lose its reasoning."""
    blocks = [text("Remember the list."), result("c1", "done")]
    found = conversation(user(*(blocks if first else reversed(blocks))))
    assert found.messages == [Message("tool", "done\n\nRemember the list.", tool_call_id="c1")]


def test_an_empty_result_is_text_all_the_same() -> None:
    found = conversation(user(result("c1", None), text("note")))
    assert found.messages == [Message("tool", "note", tool_call_id="c1")]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (user(text("a"), {"type": "thinking", "thinking": "b"}), "messages[0].content[1]"),
        (user({"type": "tool_use", "id": "c", "name": "n", "input": {}}), "messages[0].content[0]"),
        ({"role": "assistant", "content": [result("c", "x")]}, "messages[0].content[0]"),
    ],
)
def test_a_block_in_the_wrong_message_is_named(message: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        conversation(message)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_no_messages() -> None:
    with pytest.raises(ApiError) as caught:
        conversation()
    assert caught.value.param == "messages"

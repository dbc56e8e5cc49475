"""api.chat.continuation: which last messages an answer can begin with, and what is left before."""

from __future__ import annotations

import pytest

from api.chat.continuation import split_started
from api.chat.messages import Message, PromptError, ToolCall

HI = Message("user", "Hi")


@pytest.mark.parametrize("thinking", [False, True])
def test_the_last_message_is_the_beginning(thinking: bool) -> None:
    last = Message("assistant", "Well", reasoning="hm")
    history, started = split_started([HI, last], thinking)
    assert (list(history), started) == ([HI], last)


def test_reasoning_in_the_content_is_lifted() -> None:
    _, started = split_started([HI, Message("assistant", "<think>hm</think>Well")], True)
    assert started is not None and (started.reasoning, started.content) == ("hm", "Well")


@pytest.mark.parametrize(
    ("messages", "thinking", "param"),
    [
        ([Message("assistant", "a")], True, "messages[0]"),
        ([Message("system", "Be brief."), Message("assistant", "a")], True, "messages[1]"),
        (
            [HI, Message("assistant", "a", tool_calls=(ToolCall("c", "f", "{}"),))],
            True,
            "messages[1].tool_calls",
        ),
        ([HI, Message("assistant", reasoning="hm")], False, "messages[1].reasoning_content"),
        ([HI, Message("assistant", "\ud800")], True, "messages[1].content"),
        ([HI, Message("assistant", reasoning="\ud800")], True, "messages[1].reasoning_content"),
    ],
)
def test_what_cannot_be_continued_is_named(
    messages: list[Message], thinking: bool, param: str
) -> None:
    with pytest.raises(PromptError) as caught:
        split_started(messages, thinking)
    assert caught.value.param == param

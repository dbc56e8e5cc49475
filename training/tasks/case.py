"""A case: one conversation with its reference answers, and how an answer is graded."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec

from api.chat.messages import Message, ToolCall

HELD_OUT_SHARE = 16
"""One key in this many is held out of training."""


class Turn(msgspec.Struct, frozen=True):
    """A user message and the reference assistant and tool messages that follow it."""

    task: str
    user: str
    replies: tuple[Message, ...]
    key: str
    """What must be new in a held-out case: the combination of question and answer."""
    expected: tuple[str, ...]
    """Strings that the final answer must hold."""

    @property
    def held_out(self) -> bool:
        """Whether this combination is never trained on."""
        digest = hashlib.sha256(f"{self.task}|{self.key}".encode()).digest()
        return int.from_bytes(digest[:4], "big") % HELD_OUT_SHARE == 0


class Case(msgspec.Struct, frozen=True):
    """A conversation: everything up to the last user message is given, the rest is reference."""

    task: str
    system: str
    tools: tuple[dict[str, Any], ...]
    turns: tuple[Turn, ...]

    @property
    def messages(self) -> list[Message]:
        """The whole reference conversation; the last message is the final answer."""
        head = [Message("system", self.system)] if self.system else []
        for turn in self.turns:
            head.append(Message("user", turn.user))
            head.extend(turn.replies)
        return head

    @property
    def given(self) -> list[Message]:
        """The conversation up to and including the last user message."""
        return self.messages[: -len(self.turns[-1].replies)]


def answer(content: str, reasoning: str) -> Message:
    """A final assistant message."""
    return Message("assistant", content, reasoning)


def call(name: str, arguments: dict[str, Any], reasoning: str, number: int) -> Message:
    """An assistant message with one tool call; `number` makes its id."""
    tool_call = ToolCall(f"call_{number}", name, json.dumps(arguments, ensure_ascii=False))
    return Message("assistant", "", reasoning, (tool_call,))


def result(content: str, number: int) -> Message:
    """The tool's result for call `number`."""
    return Message("tool", content, tool_call_id=f"call_{number}")


def calls_of(message: Message) -> list[tuple[str, dict[str, Any]]]:
    """Name and arguments of each call of a message, in order."""
    return [(one.name, json.loads(one.arguments)) for one in message.tool_calls]


def holds(content: str, expected: tuple[str, ...]) -> bool:
    """Whether an answer holds every expected string, letter case aside."""
    text = content.casefold()
    return bool(content.strip()) and all(part.casefold() in text for part in expected)

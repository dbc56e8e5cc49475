"""Clients that send tool output as user messages: told from people, counted, and kept in the turn.

Such a client ends the turn at every step, and with it the life of the model's reasoning. By default
that stays so, as the model was trained. With `thinking_retention: "until_marker"` a user message
that opens with a marker continues the turn: outside the trained format, so only on request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from api.chat.messages import Message, last_user
from api.errors import invalid
from scheduler.retention import keeps_reasoning

ThinkingRetention = Literal["auto", "by_role", "until_marker"]

MAX_MARKERS = 16
MAX_MARKER_CHARACTERS = 1000

KNOWN_MARKERS = (
    "Current Terminal Screen:",
    "EXECUTION RESULT of [",
    "New Terminal Output:",
    "Observation:",
    "[Tool Result]",
    "<function_results>",
    "<tool_response>",
    "<tool_result>",
)
"""How clients begin a user message that holds the output of a tool."""
RESULT_HEADER = "] Result:"
"""Ends the first line of `[read_file for 'a.py'] Result:`, as Cline and Roo Code write it."""


def read_markers(
    retention: ThinkingRetention | None, marker: str | list[str] | None
) -> tuple[str, ...] | None:
    """Returns what tool output begins with, None where roles alone decide.

    Empty: the openings of known clients. Raises ApiError(400) naming `retention_marker`.
    """
    if retention != "until_marker":
        if marker is not None:
            raise invalid(
                'retention_marker needs thinking_retention: "until_marker".', "retention_marker"
            )
        return None
    markers = (marker,) if isinstance(marker, str) else tuple(marker or ())
    if len(markers) > MAX_MARKERS:
        raise invalid(
            f"{len(markers)} markers were given; the limit is {MAX_MARKERS}.", "retention_marker"
        )
    if any(not 0 < len(text) <= MAX_MARKER_CHARACTERS for text in markers):
        raise invalid(f"A marker has 1 to {MAX_MARKER_CHARACTERS} characters.", "retention_marker")
    return markers


def is_tool_output(text: str, markers: Sequence[str] = ()) -> bool:
    """Returns whether a user message begins with one of the markers; empty: those known."""
    if markers:
        return text.startswith(tuple(markers))
    if text.startswith(KNOWN_MARKERS):
        return True
    return text.startswith("[") and text.partition("\n")[0].rstrip().endswith(RESULT_HEADER)


def simulated_results(messages: Sequence[Message]) -> int:
    """Returns how many user messages look like tool output; the first of all never does."""
    users = [message.content for message in messages if message.role == "user"]
    return sum(is_tool_output(content) for content in users[1:])


def keep_until_marker(
    messages: Sequence[Message], markers: Sequence[str], thinking: bool
) -> list[Message]:
    """Returns the conversation in which marked user messages continue the turn.

    The first user message always opens one. These clients seldom send reasoning back: where a text
    of the turn that lasts on has none, the model finds an empty thought. A tool call can do better,
    see `api.conversation.restoration`.
    """
    marked: list[Message] = []
    seen_user = False
    for message in messages:
        if message.role == "user":
            if seen_user and is_tool_output(message.content, markers):
                message = msgspec.structs.replace(message, continues_turn=True)
            seen_user = True
        marked.append(message)
    opens_turn = last_user(marked)
    return [
        msgspec.structs.replace(message, reasoning="")
        if message.role == "assistant"
        and message.reasoning is None
        and not message.tool_calls
        and keeps_reasoning(index, opens_turn, thinking)
        else message
        for index, message in enumerate(marked)
    ]

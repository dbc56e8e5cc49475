"""Anthropic's messages -> the conversation the prompt encoder reads.

Tool results come inside user messages there. They become tool messages before anything asks which
user message is the last, because a user message ends the life of all reasoning before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from api.anthropic.schema import (
    MessageParam,
    TextParam,
    ThinkingParam,
    ToolResultParam,
    ToolUseParam,
)
from api.chat.messages import Message, ToolCall
from api.errors import invalid

PARAGRAPH = "\n\n"
"""Between text blocks that a person or a client wrote; what the model wrote is joined as it was."""


class Conversation(NamedTuple):
    """Messages in prompt order, and where each stood in the request."""

    messages: list[Message]
    paths: list[str]


def read_conversation(
    system: str | list[TextParam] | None, params: Sequence[MessageParam]
) -> Conversation:
    """Returns the conversation of a request. Raises ApiError(400) naming the block at fault.

    Text beside tool results belongs to the last of them: agents add reminders that way, and a user
    message of its own would drop the reasoning of the running turn.
    """
    if not params:
        raise invalid("messages must hold at least one message.", "messages", "empty_array")
    found = Conversation([], [])
    if system:
        _add(found, Message("system", _joined(system)), "system")
    for index, param in enumerate(params):
        path = f"messages[{index}]"
        if param.role == "assistant":
            _add(found, _assistant(param, path), path)
        else:
            _add_user(found, param, path)
    return found


def _add(found: Conversation, message: Message, path: str) -> None:
    found.messages.append(message)
    found.paths.append(path)


def _joined(content: str | Sequence[TextParam] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return PARAGRAPH.join(block.text for block in content)


def _add_user(found: Conversation, param: MessageParam, path: str) -> None:
    if isinstance(param.content, str):
        _add(found, Message("user", param.content), path)
        return
    texts: list[TextParam] = []
    results: list[Message] = []
    for place, block in enumerate(param.content):
        match block:
            case TextParam():
                texts.append(block)
            case ToolResultParam():
                content = _joined(block.content)
                results.append(Message("tool", content, tool_call_id=block.tool_use_id))
            case _:
                raise _misplaced(block, "user", f"{path}.content[{place}]")
    if not results:
        _add(found, Message("user", _joined(texts)), path)
        return
    if texts:
        last = results[-1]
        parts = (last.content, *(block.text for block in texts))
        content = PARAGRAPH.join(part for part in parts if part)
        results[-1] = Message("tool", content, tool_call_id=last.tool_call_id)
    for result in results:
        _add(found, result, path)


def _assistant(param: MessageParam, path: str) -> Message:
    if isinstance(param.content, str):
        return Message("assistant", param.content)
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    for place, block in enumerate(param.content):
        match block:
            case TextParam(text=text):
                texts.append(text)
            case ThinkingParam(thinking=thinking):
                thoughts.append(thinking)
            case ToolUseParam(id=call_id, name=name, input=arguments):
                calls.append(ToolCall(call_id, name, msgspec.json.encode(arguments).decode()))
            case _:
                raise _misplaced(block, "assistant", f"{path}.content[{place}]")
    reasoning = "".join(thoughts) if thoughts else None
    return Message("assistant", "".join(texts), reasoning=reasoning, tool_calls=tuple(calls))


def _misplaced(block: msgspec.Struct, role: str, path: str) -> Exception:
    kind = block.__struct_config__.tag
    return invalid(f"A block of type {kind!r} has no place in a message of the {role}.", path)

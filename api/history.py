"""The conversation on the wire -> the conversation the prompt encoder reads.

Lists of text parts are joined without separators. OpenAI's `developer` is `system` here: V3.2 keeps
its own developer turn for a search agent. Whether the history holds together (tool results, order)
is checked by `api.chat.messages.check_history`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from api.chat.messages import Message, ToolCall
from api.errors import ApiError, invalid, unsupported
from api.schema import ChatCompletionRequest, MessageParam

TEXT_PARTS = {"text": "text", "refusal": "refusal"}
"""Part type -> its field."""
MEDIA_PARTS = ("image_url", "input_audio", "file", "video_url")


def read_history(params: Sequence[MessageParam]) -> list[Message]:
    """Returns one Message per message on the wire. Raises ApiError(400) naming `messages[i]`."""
    if not params:
        raise invalid("messages must hold at least one message.", "messages", "empty_array")
    return [_message(param, f"messages[{index}]") for index, param in enumerate(params)]


def continued(request: ChatCompletionRequest) -> tuple[bool, list[MessageParam]]:
    """Returns whether the last message is to be continued, and the messages without that mark.

    DeepSeek marks the message (`prefix`), vLLM the request (`continue_final_message`).
    """
    messages = request.messages
    place = len(messages) - 1
    marked = [index for index, message in enumerate(messages) if message.prefix]
    if marked and (marked[0] != place or messages[place].role != "assistant"):
        raise invalid(
            "Only the last message can be a prefix, and only one from the assistant.",
            f"messages[{marked[0]}].prefix",
        )
    if request.continue_final_message:
        if not messages or messages[place].role != "assistant":
            raise invalid(
                "continue_final_message needs a last message from the assistant.",
                "continue_final_message",
            )
        if request.add_generation_prompt:
            raise invalid(
                "add_generation_prompt opens a new message, continue_final_message does not.",
                "add_generation_prompt",
            )
    elif request.add_generation_prompt is False:
        raise unsupported("add_generation_prompt", "A prompt that opens no answer")
    if not (marked or request.continue_final_message):
        return False, messages
    return True, [*messages[:-1], msgspec.structs.replace(messages[-1], prefix=None)]


def _message(param: MessageParam, path: str) -> Message:
    if param.prefix:
        raise unsupported(f"{path}.prefix", "Continuing an assistant message (prefix)")
    if param.function_call is not None:
        raise unsupported(f"{path}.function_call", "The deprecated function_call")
    if param.audio is not None:
        raise unsupported(f"{path}.audio", "Audio")
    if param.role == "assistant":
        return _assistant(param, path)
    if param.content is None:
        raise invalid(
            f"The content of a {param.role} message must be text, not null.", f"{path}.content"
        )
    if param.tool_calls:
        raise invalid("Only assistant messages carry tool_calls.", f"{path}.tool_calls")
    content, _ = _text(param.content, f"{path}.content", assistant=False)
    if param.role == "tool":
        if not param.tool_call_id:
            raise invalid(
                "A tool message must name the call it answers.",
                f"{path}.tool_call_id",
                "missing_required_parameter",
            )
        return Message("tool", content, tool_call_id=param.tool_call_id)
    return Message("user" if param.role == "user" else "system", content)


def _assistant(param: MessageParam, path: str) -> Message:
    content, thinking_parts = _text(param.content or "", f"{path}.content", assistant=True)
    reasoning = param.reasoning_content
    if reasoning is None:
        reasoning = param.reasoning
    if reasoning is None:
        reasoning = thinking_parts
    calls = tuple(
        ToolCall(call.id, call.function.name, _arguments(call.function.arguments))
        for call in param.tool_calls or ()
    )
    return Message("assistant", content, reasoning=reasoning, tool_calls=calls)


def _arguments(arguments: str | dict[str, Any]) -> str:
    if isinstance(arguments, str):
        return arguments if arguments.strip() else "{}"
    return msgspec.json.encode(arguments).decode()


def _text(
    content: str | list[dict[str, Any]], path: str, assistant: bool
) -> tuple[str, str | None]:
    """Returns the text of the content, and of its thinking parts if there are any."""
    if isinstance(content, str):
        return content, None
    texts: list[str] = []
    thoughts: list[str] = []
    for index, part in enumerate(content):
        kind = part.get("type")
        if assistant and kind == "thinking":
            thoughts.append(_field(part, "thinking", f"{path}[{index}]"))
        elif kind == "text" or (assistant and kind == "refusal"):
            texts.append(_field(part, TEXT_PARTS[kind], f"{path}[{index}]"))
        else:
            raise _refuse_part(kind, f"{path}[{index}].type")
    return "".join(texts), "".join(thoughts) if thoughts else None


def _refuse_part(kind: Any, path: str) -> ApiError:
    if kind in MEDIA_PARTS:
        return unsupported(path, f"A content part of type {kind!r}: this is a text model; it")
    return invalid(f"A content part must be of type 'text', not {kind!r}.", path)


def _field(part: dict[str, Any], name: str, path: str) -> str:
    value = part.get(name)
    if not isinstance(value, str):
        raise invalid(f"The {name} of a part must be a string.", f"{path}.{name}", "invalid_type")
    return value

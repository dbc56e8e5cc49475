"""A Responses request -> the chat completion that asks for the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from api.chat_request import ChatRequest, chat_request_of
from api.errors import ApiError, from_validation, invalid, unsupported
from api.facts import ModelFacts
from api.generation_request import (
    read_fields,
    refuse_of_chat,
    refuse_unhonoured,
    warn_of_unknown,
)
from api.responses.history import read_input
from api.responses.schema import (
    HARMLESS,
    INCLUDABLE,
    INCLUDED_LOGPROBS,
    KNOWN,
    OF_CHAT,
    OWN_NAMES,
    REFUSED,
    SAME,
    FormatParam,
    ResponsesRequest,
)

_NAMES = (
    (re.compile(r"^messages\b"), "input"),
    (re.compile(r"^(input\[\d+\])\.tool_call_id\b"), r"\1.call_id"),
    (re.compile(r"^(input\[\d+\])\.(?:reasoning_content|tool_calls)\b.*"), r"\1"),
    (re.compile(r"^max_completion_tokens\b"), "max_output_tokens"),
    (re.compile(r"^reasoning_effort\b"), "reasoning.effort"),
    (re.compile(r"^response_format\.json_schema\b"), "text.format"),
    (re.compile(r"^response_format\b"), "text.format"),
    (re.compile(r"^(tools\[\d+\]|tool_choice)\.function\b"), r"\1"),
    (re.compile(r"^tool_choice\.allowed_tools\b"), "tool_choice"),
)
"""Fields of a chat completion, and what they are called here."""


class ResponseRequest(ChatRequest, frozen=True, kw_only=True):
    """A validated request; the answer repeats the settings as they were sent."""

    sent: ResponsesRequest


def read_responses_request(body: bytes, facts: ModelFacts) -> ResponseRequest:
    """Returns the request in `body`. Raises ApiError: 400 naming the field, 404 for the model.

    What a chat completion finds wrong has that dialect's names; see :func:`name_as_sent`.
    """
    fields = read_fields(body)
    try:
        request = msgspec.convert(fields, ResponsesRequest)
    except msgspec.ValidationError as error:
        raise from_validation(error) from error
    refuse_unhonoured(fields, REFUSED)
    refuse_of_chat(fields, OF_CHAT, OWN_NAMES)
    warn_of_unknown(fields, KNOWN | HARMLESS | REFUSED | OF_CHAT)
    if request.truncation == "auto":
        raise unsupported("truncation", "Dropping items from a long input (auto)")
    if request.reasoning is not None and request.reasoning.context == "all_turns":
        raise unsupported("reasoning.context", "Reasoning of turns that are over (all_turns)")
    if isinstance(request.context_management, list):
        _refuse_entries(request.context_management)
    for index, name in enumerate(request.include or ()):
        if name not in INCLUDABLE:
            raise invalid(f"{name!r} cannot be included.", f"include[{index}]")
    conversation = read_input(request.instructions, request.input)
    chat = {name: fields[name] for name in SAME if name in fields}
    chat |= _translated(request)
    if not request.context_management:
        chat.pop("context_management", None)
    read = chat_request_of({**chat, "messages": conversation.messages}, facts)
    inherited = {name: getattr(read, name) for name in read.__struct_fields__}
    inherited |= {"message_paths": tuple(conversation.paths), "include_usage": True}
    return ResponseRequest(**inherited, sent=request)


def _refuse_entries(entries: list[Any]) -> None:
    """Raises ApiError(400) for the first entry of OpenAI's context management, whatever it is."""
    for index, entry in enumerate(entries):
        path = f"context_management[{index}]"
        if not isinstance(entry, dict):
            raise invalid("An entry of context_management is an object.", path, "invalid_type")
        kind = entry.get("type")
        if not isinstance(kind, str):
            raise invalid(
                "An entry of context_management needs a type.",
                f"{path}.type",
                "missing_required_parameter",
            )
        raise unsupported(
            f"{path}.type",
            f"Context management of type {kind[:100]!r} (an object with a strategy is the form of "
            "this server's own); it",
        )


def name_as_sent(error: ApiError) -> None:
    """Gives an error about a field of a chat completion the name the field has in this dialect.

    One that the client did send by that other name keeps it.
    """
    if error.code != "unsupported_parameter" or error.param not in OF_CHAT:
        error.param = as_sent(error.param)


def as_sent(param: str | None) -> str | None:
    """Returns the name that a field of a chat completion has in this dialect."""
    if param is None:
        return None
    for pattern, name in _NAMES:
        param, count = pattern.subn(name, param)
        if count:
            break
    return param


def _translated(request: ResponsesRequest) -> dict[str, Any]:
    """The fields of a chat completion that have another name or form."""
    chat: dict[str, Any] = {"max_completion_tokens": request.max_output_tokens}
    if request.tools is not None:
        chat["tools"] = [_nested_tool(tool) for tool in request.tools]
    chat["tool_choice"] = _nested_choice(request.tool_choice)
    if request.reasoning is not None:
        chat["reasoning_effort"] = request.reasoning.effort
    if request.text is not None and request.text.format is not None:
        chat["response_format"] = _nested_format(request.text.format)
    wanted = INCLUDED_LOGPROBS in (request.include or ())
    if wanted or request.top_logprobs is not None:
        chat["logprobs"] = wanted or bool(request.top_logprobs)
        chat["top_logprobs"] = request.top_logprobs if chat["logprobs"] else None
    return chat


def _nested_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        return dict(tool)
    function = {key: value for key, value in tool.items() if key != "type" and value is not None}
    return {"type": "function", "function": function}


def _nested_choice(choice: str | Mapping[str, Any] | None) -> str | dict[str, Any] | None:
    if choice is None or isinstance(choice, str):
        return choice
    match choice.get("type"):
        case "function":
            return _named(choice)
        case "allowed_tools":
            tools = choice.get("tools")
            nested = [_named(tool) for tool in tools] if isinstance(tools, list) else tools
            allowed = {"mode": choice.get("mode"), "tools": nested}
            return {"type": "allowed_tools", "allowed_tools": allowed}
    return dict(choice)


def _named(tool: Any) -> Any:
    if not isinstance(tool, Mapping) or tool.get("type") != "function":
        return tool
    return {"type": "function", "function": {"name": tool.get("name")}}


def _nested_format(format: FormatParam) -> dict[str, Any]:
    if format.type != "json_schema":
        return {"type": format.type}
    inner = msgspec.to_builtins(format)
    del inner["type"]
    return {"type": "json_schema", "json_schema": inner}

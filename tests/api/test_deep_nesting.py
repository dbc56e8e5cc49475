"""Every place of a request that takes any JSON, with more of it than a walk through it can bear."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from api.anthropic.request import read_messages_request
from api.chat_request import read_chat_request
from api.errors import ApiError
from api.responses.request import read_responses_request
from api.tokenise import tokenise
from tests.api.scripted_engine import MODEL, Scripted

LEVELS = (30, 200, 450, 700, 900, 960)
"""From what a schema may have to what can only just be decoded."""

Nested = Any
Make = Callable[[Nested], dict[str, Any]]


DEEP = "@deep@"
"""Stands for the nested value: Python could not write it out."""


def body_of(fields: dict[str, Any], levels: int, of_objects: bool) -> bytes:
    """A body in which DEEP is objects in objects, or lists in lists."""
    deep = "[" * levels + "]" * levels
    if of_objects:
        deep = '{"properties": {"a": ' * (levels // 2) + "1" + "}}" * (levels // 2)
    text = json.dumps({"model": MODEL, **fields})
    inside = deep.replace('"', '\\"')
    return text.replace(f'\\"{DEEP}\\"', inside).replace(f'"{DEEP}"', deep).encode()


def calling(arguments: Any) -> list[dict[str, Any]]:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "x"},
    ]


def tool(parameters: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f", "parameters": parameters, **more}}]


def wrapped(schema: Any, strict: bool) -> dict[str, Any]:
    return {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"properties": {"a": schema}}, "strict": strict},
    }


USER: Any = [{"role": "user", "content": "Hi"}]
CHAT: dict[str, Make] = {
    "tools": lambda deep: {"tools": tool({"properties": deep})},
    "strict": lambda deep: {"tools": tool({"properties": {"a": deep}}, strict=True)},
    "required": lambda deep: {
        "tools": tool({"properties": {"a": deep}}),
        "tool_choice": "required",
    },
    "tool_choice": lambda deep: {"tools": tool({}), "tool_choice": {"type": deep}},
    "allowed": lambda deep: {
        "tools": tool({}),
        "tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": [deep]}},
    },
    "arguments": lambda deep: {"messages": calling({"a": deep})},
    "argument text": lambda deep: {"messages": calling(json.dumps({"a": deep}))},
    "content": lambda deep: {"messages": [{"role": "user", "content": [{"type": deep}]}]},
    "part": lambda deep: {"messages": [{"role": "user", "content": [{"type": "text", "a": deep}]}]},
    "format": lambda deep: {"response_format": wrapped(deep, strict=False)},
    "strict format": lambda deep: {"response_format": wrapped(deep, strict=True)},
    "guided": lambda deep: {"guided_json": {"properties": {"a": deep}}},
    "guided text": lambda deep: {"guided_json": json.dumps({"properties": {"a": deep}})},
    "enum": lambda deep: {"guided_json": {"enum": [deep]}},
    "metadata": lambda deep: {"metadata": deep},
    "unknown": lambda deep: {"nobody_knows": deep},
}
MESSAGES: dict[str, Make] = {
    "tools": lambda deep: {"tools": [{"name": "f", "input_schema": {"properties": {"a": deep}}}]},
    "input": lambda deep: {
        "messages": [
            *USER,
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {"a": deep}}],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c"}]},
        ]
    },
    "unknown": lambda deep: {"nobody_knows": deep},
}
RESPONSES: dict[str, Make] = {
    "tools": lambda deep: {
        "tools": [{"type": "function", "name": "f", "parameters": {"properties": {"a": deep}}}]
    },
    "tool": lambda deep: {"tools": [{"type": "function", "name": "f", "nobody_knows": deep}]},
    "tool_choice": lambda deep: {"tool_choice": {"type": "allowed_tools", "tools": [deep]}},
    "format": lambda deep: {
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"a": deep}}}
    },
    "summary": lambda deep: {"input": [{"type": "reasoning", "summary": [{"a": deep}]}, *USER]},
}
DIALECTS: dict[str, tuple[Any, dict[str, Any], dict[str, Make]]] = {
    "chat": (read_chat_request, {"messages": USER}, CHAT),
    "messages": (read_messages_request, {"messages": USER, "max_tokens": 9}, MESSAGES),
    "responses": (read_responses_request, {"input": USER}, RESPONSES),
}
CASES = [(dialect, name) for dialect, (_, _, makes) in DIALECTS.items() for name in makes]


@pytest.mark.parametrize(("dialect", "name"), CASES)
def test_deep_json_is_refused_or_does_no_harm(scripted: Scripted, dialect: str, name: str) -> None:
    read, fields, makes = DIALECTS[dialect]

    async def ask(body: bytes) -> None:
        async with await scripted.service.start(body, read=read) as turn:
            await turn.completion()

    for levels in LEVELS:
        for of_objects in (False, True):
            body = body_of(fields | makes[name](DEEP), levels, of_objects)
            assert body.count(b"[") + body.count(b"{") > levels - 2
            try:
                asyncio.run(ask(body))
            except ApiError as error:
                assert error.status == 400, error.message


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("name", ["tools", "arguments", "argument text", "content", "unknown"])
def test_a_deep_conversation_to_be_tokenised(scripted: Scripted, name: str, levels: int) -> None:
    body = body_of({"messages": USER} | CHAT[name](DEEP), levels, True)
    try:
        tokenise(scripted.service, body)
    except ApiError as error:
        assert error.status == 400, error.message


@pytest.mark.parametrize("levels", LEVELS)
def test_a_deep_schema_of_a_text_completion(scripted: Scripted, levels: int) -> None:
    schema = {"properties": {"a": DEEP}}
    body = body_of({"prompt": "a", "guided_json": schema}, levels, True)

    async def ask() -> None:
        async with await scripted.service.start_completion(body):
            pass

    try:
        asyncio.run(ask())
    except ApiError as error:
        assert error.status == 400, error.message

"""Any JSON in any published field: an answer, or a refusal in the route's shape. Never a 500."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.config import ServerConfig
from api.server import create_app
from tests.api.scripted_engine import MODEL, Scripted

CALL: Any = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
FLAT_TOOL: Any = {"type": "function", "name": "f", "parameters": {"type": "object"}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [
            {"role": "system", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c", "content": "4"},
        ],
        "tools": [TOOL],
        "thinking": {"type": "enabled"},
        "stream_options": {"include_usage": True},
        "stream": True,
    },
    "/v1/completions": {"prompt": ["a", "b"], "n": 1, "stream": False, "logprobs": 1},
    "/v1/responses": {
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "a"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "4"},
        ],
        "tools": [FLAT_TOOL],
        "text": {"format": {"type": "text"}},
        "reasoning": {"effort": "low"},
        "include": ["message.output_text.logprobs"],
    },
    "/v1/messages": {
        "max_tokens": 9,
        "system": [{"type": "text", "text": "a"}],
        "messages": [
            {"role": "user", "content": "a"},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "c", "content": "4"}],
            },
        ],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
        "thinking": {"type": "disabled"},
    },
    "/tokenize": {"messages": [{"role": "user", "content": "a"}], "tools": [TOOL]},
    "/detokenize": {"tokens": [1, 2]},
}
WORDS = ("", "a", "auto", "none", "required", "function", "json_schema", "user", "type", "\x00é")
SCALARS: Any = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([-1, 0, 1, 2, 100])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(WORDS)
    | st.text(st.characters(codec="utf-8"), max_size=5)
)
ANY_JSON: Any = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a body: every field and every element."""
    found = [path] if path else []
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, one in inner:
            found += places(one, (*path, key))
    return found


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of the body with something else at one place."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(copy[path[0]], path[1:], new)
    return copy


@pytest.fixture
def app(scripted: Scripted) -> FastAPI:
    return create_app(scripted.backend, ServerConfig())


@pytest.fixture
def fields(app: FastAPI, path: str) -> list[str]:
    """The published names of a body's fields."""
    operation = app.openapi()["paths"][path]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    name = schema["$ref"].rpartition("/")[2]
    return sorted(app.openapi()["components"]["schemas"][name]["properties"])


@pytest.mark.parametrize("path", BODIES)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_no_body_breaks_a_route(
    scripted: Scripted, app: FastAPI, fields: list[str], path: str, data: st.DataObject
) -> None:
    body = {"model": MODEL, **BODIES[path]}
    for _ in range(data.draw(st.integers(1, 2))):
        if data.draw(st.booleans()):
            body[data.draw(st.sampled_from(fields))] = data.draw(ANY_JSON)
        else:
            body = put(body, data.draw(st.sampled_from(places(body))), data.draw(ANY_JSON))

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://winnow") as client:
            return await client.post(path, json=body)

    answer = asyncio.run(run())
    assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text
    assert ("error" in answer.json()) if answer.status_code != 200 else answer.text
    assert scripted.engine.open == 0

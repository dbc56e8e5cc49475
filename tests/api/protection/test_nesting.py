"""Bodies nested too deeply: refused by field on every route, before the engine hears of them."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec
import pytest

from api.errors import ApiError
from api.generation_request import read_fields
from api.protection.nesting import MAX_NESTING, SEARCHED_BYTES
from api.service import INLINE_BODY_BYTES
from tests.api.scripted_engine import MODEL, Scripted
from tests.api.test_server import http

USER: Any = [{"role": "user", "content": "Hi"}]
DEEP = "@deep@"


def function_tool(**more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, **more}}


# route: a body in which DEEP stands for nested lists, the field it is in, the levels around it
ROUTES: dict[str, tuple[dict[str, Any], str, int]] = {
    "/v1/chat/completions": ({"messages": USER, "tools": [function_tool(more=DEEP)]}, "tools", 4),
    "/v1/completions": ({"prompt": "a", "nobody_knows": DEEP}, "nobody_knows", 1),
    "/v1/responses": (
        {"input": USER, "tools": [{"type": "function", "name": "f", "more": DEEP}]},
        "tools",
        3,
    ),
    "/v1/messages": (
        {"messages": USER, "max_tokens": 9, "tools": [{"name": "f", "more": DEEP}]},
        "tools",
        3,
    ),
    "/v1/messages/count_tokens": (
        {"messages": USER, "tools": [{"name": "f", "more": DEEP}]},
        "tools",
        3,
    ),
    "/tokenize": ({"messages": USER, "tools": [function_tool(more=DEEP)]}, "tools", 4),
    "/detokenize": ({"tokens": [65], "nobody_knows": DEEP}, "nobody_knows", 1),
}


def body_of(fields: dict[str, Any], levels: int, at_least_bytes: int = 0) -> bytes:
    """A body with lists in lists for DEEP; white space makes it as long as it has to be."""
    text = msgspec.json.encode({"model": MODEL, **fields}).decode()
    text = text.replace(f'"{DEEP}"', "[" * levels + "]" * levels)
    return text.encode().ljust(at_least_bytes)


def ask(scripted: Scripted, path: str, bodies: list[bytes]) -> list[httpx.Response]:
    async def run(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.post(path, content=body) for body in bodies]

    return http(scripted.backend, run)


@pytest.mark.parametrize("at_least_bytes", [0, INLINE_BODY_BYTES + 1])
@pytest.mark.parametrize("path", ROUTES)
def test_the_field_is_named_before_anything_is_generated(
    scripted: Scripted, path: str, at_least_bytes: int
) -> None:
    fields, name, around = ROUTES[path]
    # One level too many, what a thread can just decode, what nobody can.
    depths = (MAX_NESTING - around + 1, 960, 975, 985, 20_000)
    bodies = [body_of(fields, levels, at_least_bytes) for levels in depths]
    for answer in ask(scripted, path, bodies):
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert f"the limit is {MAX_NESTING} levels" in error["message"]
        if path.startswith("/v1/messages"):
            assert error["message"].startswith(f"{name}: ")
        else:
            assert (error["param"], error["code"]) == (name, "invalid_json")
    assert not scripted.engine.submits


@pytest.mark.parametrize("at_least_bytes", [0, INLINE_BODY_BYTES + 1])
@pytest.mark.parametrize("path", ROUTES)
def test_what_is_taken_can_be_answered(scripted: Scripted, path: str, at_least_bytes: int) -> None:
    """Also where the answer repeats it, whole and in every event that does."""
    fields, _, around = ROUTES[path]
    levels = MAX_NESTING - around
    streams = [{}, {"stream": True}] if "okenize" not in path and "count" not in path else [{}]
    bodies = [body_of(fields | more, levels, at_least_bytes) for more in streams]
    for more, answer in zip(streams, ask(scripted, path, bodies), strict=True):
        assert answer.status_code == 200, answer.text
        if path == "/v1/responses":
            assert answer.text.count("[" * levels) == (3 if more else 1)
            assert "response.failed" not in answer.text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"[" * 50_000, None),
        (b'{"a": "' + b"[" * 500 + b'", "b": ' + b"[" * 1000, "b"),
        (b'{"a": "[", "x\\"[": {"y": ' + b'{"a": ' * 1000, 'x"['),
        (b'{"' + b"n" * 500 + b'": ' + b"[" * 1000, "n" * 100),
        (b'{"\\ud800": ' + b"[" * 1000, None),
        (b'{"a": "' + b"x" * SEARCHED_BYTES + b'", "b": ' + b"[" * 1000, None),
    ],
)
def test_the_field_is_found_where_nothing_can_be_decoded(body: bytes, param: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        read_fields(body)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_many_brackets_are_no_depth() -> None:
    rows = [[[number], {"a": {}}] for number in range(1000)]
    assert read_fields(msgspec.json.encode({"rows": rows})) == {"rows": rows}

"""Errors as clients' SDKs expect them: one status per kind of trouble, one shape everywhere."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.backend import Backend
from api.config import ServerConfig
from api.errors import RETRY_S, ApiError
from api.server import create_app
from engine.messages import Refused
from tests.api.scripted_engine import MODEL, Scripted, body
from tests.api.test_server import http

CHAT = "/v1/chat/completions"
SHAPE = {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "invalid_request_error"),
        (403, "permission_error"),
        (404, "invalid_request_error"),
        (408, "timeout_error"),
        (413, "invalid_request_error"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "overloaded"),
    ],
)
def test_every_status_has_its_type(status: int, kind: str) -> None:
    assert ApiError(status, "No.").body.error.type == kind


@pytest.mark.parametrize("status", [400, 401, 404, 408, 413, 429, 500, 503])
def test_who_may_come_back_is_told_when(status: int) -> None:
    """SDKs try again after 429 and 503 by themselves, and by these headers if there are any."""
    headers = ApiError(status, "No.").headers
    assert ("retry-after" in headers) == (status in (429, 503))
    if status in (429, 503):
        assert headers["retry-after-ms"] == str(round(1000 * RETRY_S))
        assert ApiError(status, "No.", retry_after=7.0).headers["retry-after"] == "7"


def test_a_server_that_drains_says_when_to_ask_again(scripted: Scripted) -> None:
    scripted.backend.draining = True
    answer = http(scripted.backend, lambda client: client.get("/ready"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stopping")
    assert int(answer.headers["retry-after"]) >= 1


def loading(scripted: Scripted) -> Backend:
    return Backend((MODEL,))


def dead(scripted: Scripted) -> Backend:
    scripted.engine.death = "killed"
    return scripted.backend


def full(scripted: Scripted) -> Backend:
    scripted.engine.refusal = Refused("x", 429, "queue_full", "full", None, None)
    return scripted.backend


@pytest.mark.parametrize(
    ("backend", "status", "code", "kind"),
    [
        (loading, 503, "loading", "overloaded_error"),
        (dead, 503, "engine_dead", "overloaded_error"),
        (full, 429, "queue_full", "rate_limit_error"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses", "/v1/messages"])
def test_a_server_that_cannot_now_says_so_on_every_route(
    scripted: Scripted, path: str, backend: Any, status: int, code: str, kind: str
) -> None:
    request = {"model": MODEL, "input": "Hi", "prompt": "Hi", "max_tokens": 9}
    request["messages"] = [{"role": "user", "content": "Hi"}]
    taken = {"/v1/completions": ("prompt",), "/v1/responses": ("input",)}
    fields = taken.get(path, ("messages", "max_tokens"))
    content = {name: request[name] for name in ("model", *fields)}
    answer = http(backend(scripted), lambda client: client.post(path, json=content))
    assert answer.status_code == status
    assert int(answer.headers["retry-after"]) >= 1
    if path != "/v1/messages":
        assert answer.json()["error"].keys() == SHAPE
        assert answer.json()["error"]["code"] == code
    else:
        assert answer.json()["error"]["type"] == kind


def app_with_a_route_of_the_frameworks(scripted: Scripted) -> FastAPI:
    app = create_app(scripted.backend, ServerConfig())

    @app.get("/typed")
    async def typed(number: int) -> int:
        return number

    return app


def test_the_frameworks_own_refusal_has_our_shape(scripted: Scripted) -> None:
    """Its `detail` is nothing that any SDK reads."""
    app = app_with_a_route_of_the_frameworks(scripted)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://winnow") as client:
            return await client.get("/typed", params={"number": "many"})

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.json().keys()) == (422, {"error"})
    assert answer.json()["error"].keys() == SHAPE


def test_no_route_promises_the_frameworks_shape(scripted: Scripted) -> None:
    document = create_app(scripted.backend, ServerConfig()).openapi()
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert "422" not in operation["responses"], path


@pytest.mark.parametrize(
    ("fields", "status", "param", "code"),
    [
        ({"temperature": "hot"}, 400, "temperature", "invalid_type"),
        ({"messages": []}, 400, "messages", "empty_array"),
        (
            {"messages": [{"role": "user", "content": "x" * 9000}]},
            400,
            "messages",
            "context_length_exceeded",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            400,
            "response_format.json_schema.schema",
            "invalid_value",
        ),
        ({"guided_json": {"type": "nothing"}}, 400, "guided_json", "invalid_grammar"),
        (
            {
                "tool_choice": "required",
                "tools": [
                    {"type": "function", "function": {"name": "f", "description": "x" * 10**6}}
                ],
            },
            400,
            "tools",
            "context_length_exceeded",
        ),
        ({"chat_template": "{{ messages }}"}, 400, "chat_template", "unsupported_parameter"),
        ({"model": "gpt-5"}, 404, "model", "model_not_found"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_come_before_the_first_byte_of_a_stream(
    scripted: Scripted,
    fields: dict[str, Any],
    status: int,
    param: str,
    code: str,
    stream: bool,
) -> None:
    request = body(stream=stream, **fields)
    answer = http(scripted.backend, lambda client: client.post(CHAT, content=request))
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert error.keys() == SHAPE
    assert (error["param"], error["code"]) == (param, code)
    assert not scripted.engine.submits


def test_template_options_reach_nothing_but_the_mode(scripted: Scripted) -> None:
    """Others run a template of the client's with whatever stands here."""
    plain = scripted.service.prepare(body())[1]
    options = {"tokenize": False, "chat_template": "{{ 1 }}", "add_generation_prompt": False}
    assert scripted.service.prepare(body(chat_template_kwargs=options))[1] == plain


def test_a_client_that_hangs_up_leaves_nothing_but_a_line_in_the_log(scripted: Scripted) -> None:
    """499 is nobody's answer: whoever would read it has gone."""
    app = create_app(scripted.backend, ServerConfig())
    scripted.engine.gate.clear()
    sent: list[Any] = []
    messages = [{"type": "http.request", "body": body(), "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        while not scripted.engine.open:
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": CHAT,
        "raw_path": CHAT.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "server": ("winnow", 80),
        "client": ("here", 1),
        "headers": [(b"host", b"winnow"), (b"content-type", b"application/json")],
    }
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 499
    assert scripted.engine.open == 0
    assert scripted.engine.aborts == [submit.id for submit in scripted.engine.submits]

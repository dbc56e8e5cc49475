"""api.logs: JSON lines with request ids, and nothing of what was said."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.config import ServerConfig
from api.logs import JsonFormatter, TextFormatter, request_id
from api.server import create_app
from tests.api.scripted_engine import MODEL, Scripted

CHAT = "/v1/chat/completions"
SECRET = "tell-no-one"
BODY: Any = {"model": MODEL, "messages": [{"role": "user", "content": SECRET}]}


@pytest.fixture
def lines() -> Iterator[Any]:
    """What the server has logged so far, one dictionary per line."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("winnow")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel("INFO")
    try:
        yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def send(scripted: Scripted, path: str, config: Any = None, **fields: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        app = create_app(scripted.backend, ServerConfig(**(config or {})))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://winnow") as client:
            method = "POST" if "json" in fields or "content" in fields else "GET"
            return await client.request(method, path, **fields)

    return asyncio.run(run())


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_one_line_without_content(
    scripted: Scripted, lines: Any, tmp_path: Path, stream: bool
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sk-secret")
    answer = send(
        scripted,
        CHAT + "?key=sk-secret",
        {"api_key_file": str(keys)},
        json=BODY | {"stream": stream},
        headers={"authorization": "Bearer sk-secret"},
    )
    assert answer.status_code == 200
    (line,) = (entry for entry in lines() if entry["logger"] == "winnow.access")
    assert (line["method"], line["path"], line["status"]) == ("POST", CHAT, 200)
    assert line["request_id"].startswith("req_") and line["seconds"] >= 0
    assert line["answer_id"] == answer.headers["x-request-id"]
    assert line["answer_id"].startswith("chatcmpl-")
    assert len(line["tenant"]) == 16
    text = json.dumps(line)
    assert all(secret not in text for secret in (SECRET, "sk-secret", "Hello", "?"))


def test_an_error_has_the_id_that_its_line_has(scripted: Scripted, lines: Any) -> None:
    answer = send(scripted, CHAT, json={"model": MODEL})
    assert answer.status_code == 400
    (line,) = (entry for entry in lines() if entry["logger"] == "winnow.access")
    assert (line["status"], line["request_id"]) == (400, answer.headers["x-request-id"])


@pytest.mark.parametrize(
    ("given", "kept"), [("trace-1.a:b", True), ("two words", False), ("a" * 129, False)]
)
def test_a_proxys_id_is_kept_if_it_is_one(
    scripted: Scripted, lines: Any, given: str, kept: bool
) -> None:
    answer = send(scripted, "/health", headers={"x-request-id": given})
    (line,) = (entry for entry in lines() if entry["logger"] == "winnow.access")
    assert (line["request_id"] == given) is kept
    assert answer.headers["x-request-id"] == line["request_id"]


def test_messages_of_a_request_carry_its_id(scripted: Scripted, lines: Any) -> None:
    answer = send(scripted, CHAT, json=BODY | {"never_heard_of_this_field": 1})
    assert answer.status_code == 200
    warning, access = lines()
    assert warning["level"] == "warning" and "never_heard" in warning["message"]
    assert warning["request_id"] == access["request_id"]


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("winnow", logging.INFO, "x.py", 1, message, None, None)


def test_a_line_stays_one_line() -> None:
    line = JsonFormatter().format(record("first\nsecond"))
    assert "\n" not in line and json.loads(line)["message"] == "first\nsecond"


def test_text_lines_show_the_same() -> None:
    token = request_id.set("req_1")
    try:
        shown = TextFormatter("%(levelname)s %(message)s").format(record("hello"))
    finally:
        request_id.reset(token)
    assert shown == "INFO hello request_id=req_1"
    assert TextFormatter("%(message)s").format(record("hello")) == "hello"


def test_browsers_of_allowed_origins_may_ask(scripted: Scripted) -> None:
    async def run(config: Any, origin: str, method: str = "OPTIONS") -> httpx.Response:
        app = create_app(scripted.backend, ServerConfig(**config))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://winnow") as client:
            headers = {
                "origin": origin,
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization,content-type",
            }
            return await client.request(method, CHAT, headers=headers)

    allowed = asyncio.run(run({"cors_origins": ("https://a.example",)}, "https://a.example"))
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://a.example"
    other = asyncio.run(run({"cors_origins": ("https://a.example",)}, "https://b.example"))
    assert other.status_code == 400
    none = asyncio.run(run({}, "https://a.example"))
    assert "access-control-allow-origin" not in none.headers

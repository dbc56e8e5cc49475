"""deploy.ray.forwarding: every request has an end that the client can tell, and only one answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import Response

from api.anthropic.response import error_body
from api.errors import ApiError
from deploy.ray.errors import Failure
from deploy.ray.forwarding import Patience, forward, forwarded_headers
from deploy.ray.messages import Broken, Head, Message, NotTaken, Routed

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
JSON_HEAD = Head(
    200, ((b"content-type", b"application/json"), (b"x-told", b"7"), (b"x-request-id", b"8"))
)
SSE_HEAD = Head(200, ((b"content-type", b"text/event-stream; charset=utf-8"),))
EVENTS = b'data: {"n": 1}\n\n: keep-alive\n\ndata: {"n": 2}\n\ndata: [DONE]\n\n'


class Died(Exception):
    """As Ray raises when an actor is gone."""


class ScriptedCall:
    """Says what it was told to say, raises what is raised there; None never comes."""

    def __init__(self, script: Sequence[Message | Exception | None]) -> None:
        self.script, self.cancelled = script, False

    async def __aiter__(self) -> AsyncIterator[Message]:
        for each in self.script:
            if each is None:
                await asyncio.Event().wait()
            elif isinstance(each, Exception):
                raise each
            else:
                yield each

    def cancel(self) -> None:
        self.cancelled = True


class Replicas:
    """Gives each try the next script; remembers who was to be avoided."""

    def __init__(self, *scripts: Sequence[Message | Exception | None]) -> None:
        self.calls = [ScriptedCall(script) for script in scripts]
        self.avoided: list[tuple[str, ...]] = []

    def send(self, avoid: tuple[str, ...]) -> ScriptedCall:
        self.avoided.append(avoid)
        return self.calls[len(self.avoided) - 1]


async def read(response: Response) -> tuple[int, dict[bytes, bytes], list[bytes]]:
    """The response as its client gets it: status, headers, pieces of the body."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return await asyncio.Event().wait()

    await response({"type": "http"}, receive, send)
    start, *bodies = sent
    assert not bodies[-1].get("more_body", False)
    assert all(body["more_body"] for body in bodies[:-1])
    return start["status"], dict(start["headers"]), [body["body"] for body in bodies]


def ask(
    replicas: Replicas, path: str = CHAT, tries: int = 3, only: str | None = None
) -> tuple[int, dict[bytes, bytes], list[bytes]]:
    async def run() -> tuple[int, dict[bytes, bytes], list[bytes]]:
        try:
            response = await forward(path, replicas.send, Patience(0.05, tries), only)
        except Failure as failure:
            response = failure.response(path)
        return await read(response)

    answer = asyncio.run(run())
    assert all(call.cancelled for call in replicas.calls[: len(replicas.avoided)])
    return answer


def test_an_answer_arrives_whole_with_its_headers_and_its_replica() -> None:
    replicas = Replicas([Routed("one"), JSON_HEAD, b'{"a":', b"1}"])
    status, headers, body = ask(replicas)
    assert (status, b"".join(body)) == (200, b'{"a":1}')
    assert headers[b"x-told"] == b"7"
    assert b"x-request-id" not in headers  # Ray tells it
    assert headers[b"x-winnow-replica"] == b"one"
    assert headers[b"content-length"] == b"7"


@given(st.lists(st.integers(0, len(EVENTS)), max_size=8))
def test_a_stream_passes_in_whole_events_however_it_was_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(EVENTS)]
    pieces = [EVENTS[a:b] for a, b in pairwise(edges)]
    status, _, body = ask(Replicas([Routed("one"), SSE_HEAD, *pieces]))
    assert (status, b"".join(body)) == (200, EVENTS)
    assert all(piece.endswith(b"\n\n") for piece in body[:-1])


@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
@pytest.mark.parametrize("end", [Died("gone"), Broken("its server died")])
def test_a_stream_whose_replica_dies_ends_with_one_error_event(
    path: str, end: Exception | Broken
) -> None:
    replicas = Replicas([Routed("one"), SSE_HEAD, b'data: {"n": 1}\n\ndata: {"n', end])
    status, _, body = ask(replicas, path)
    events = b"".join(body).decode().split("\n\n")
    assert status == 200
    assert events[0] == 'data: {"n": 1}'
    assert events[2:] == [""]
    name, _, data = events[1].rpartition("data: ")
    error = json.loads(data)
    assert name == ("" if path == CHAT else "event: error\n")
    assert "lost before the answer ended" in (error.get("error") or error)["message"]


@pytest.mark.parametrize(
    "script",
    [
        [Died("gone")],
        [Routed("one"), Died("gone")],
        [Routed("one"), Broken("its server died")],
        [Routed("one"), JSON_HEAD, b"{", Died("gone")],
        [Routed("one"), JSON_HEAD, b"{", Broken("its server died")],
        [Routed("one")],
        [],
    ],
)
def test_a_request_that_may_have_been_seen_is_not_sent_again(
    script: list[Message | Exception | None],
) -> None:
    replicas = Replicas(script)
    status, headers, body = ask(replicas)
    assert status == 503
    assert headers[b"retry-after"] == b"2"
    assert json.loads(b"".join(body))["error"]["code"] == "replica_lost"


def test_a_request_that_nobody_saw_goes_to_another_replica() -> None:
    replicas = Replicas(
        [Routed("one"), NotTaken("connection refused")],
        [Routed("two"), NotTaken("not ready")],
        [Routed("three"), JSON_HEAD, b"{}"],
    )
    status, headers, _ = ask(replicas)
    assert (status, headers[b"x-winnow-replica"]) == (200, b"three")
    assert replicas.avoided == [(), ("one",), ("one", "two")]


def test_tries_have_an_end() -> None:
    replicas = Replicas(*[[Routed("one"), NotTaken("connection refused")]] * 2)
    status, _, body = ask(replicas, tries=2)
    error = json.loads(b"".join(body))["error"]
    assert (status, error["code"]) == (503, "no_replica")
    assert "connection refused" in error["message"]


def test_a_request_that_no_replica_gets_is_told_so() -> None:
    status, _, body = ask(Replicas([None]))
    assert (status, json.loads(b"".join(body))["error"]["code"]) == (503, "no_replica")


def test_only_the_replica_that_is_meant_answers() -> None:
    script = [Routed("one"), JSON_HEAD, b"{}"]
    assert ask(Replicas(script), only="one")[0] == 200
    status, _, body = ask(Replicas(script), only="two")
    assert (status, json.loads(b"".join(body))["error"]["code"]) == (404, "replica_not_found")


def test_a_stream_whose_client_left_ends_its_call() -> None:
    replicas = Replicas([Routed("one"), SSE_HEAD, b"data: 1\n\n", None])

    async def run() -> None:
        response = await forward(CHAT, replicas.send, Patience(1, 1))
        assert not replicas.calls[0].cancelled
        reading = asyncio.create_task(read(response))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)

    asyncio.run(run())
    assert replicas.calls[0].cancelled


def test_what_belongs_to_a_connection_stays_there() -> None:
    headers = [(b"Connection", b"close"), (b"Host", b"a"), (b"Authorization", b"Bearer x")]
    assert forwarded_headers(headers) == ((b"Authorization", b"Bearer x"),)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (404, "replica_not_found"),
        (408, "body_timeout"),
        (413, "request_too_large"),
        (503, "replica_lost"),
    ],
)
def test_errors_look_like_the_server_s_own(status: int, code: str) -> None:
    ours = Failure(status, code, "What went wrong.", 2)
    theirs = ApiError(status, "What went wrong.", code=code, retry_after=2)
    for path, body in ((CHAT, theirs.body), (MESSAGES, error_body(theirs))):
        assert ours.body(path) == msgspec.to_builtins(body)
    shown = ours.response(CHAT).headers
    assert theirs.headers.items() <= dict(shown).items()

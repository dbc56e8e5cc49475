"""tests.soak: what it calls broken is broken, and what it lets pass is not."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import httpx
import pytest

from tests.soak.run import JUDGED_S, Memory
from tests.soak.traffic import KINDS, Ended, Outcome, Request, ask

STREAM = Request("/v1/chat/completions", b"{}", streams=True)
PLAIN = Request("/v1/chat/completions", b"{}")
GARBAGE = Request("/v1/chat/completions", b"{", refused=True)
ERROR: Any = {"error": {"message": "it died", "code": "engine_dead"}}
CHUNK: Any = {"choices": []}


def sse(*events: Any) -> bytes:
    lines = (event if isinstance(event, str) else json.dumps(event) for event in events)
    return "".join(f"data: {line}\n\n" for line in lines).encode()


def outcome(request: Request, status: int, content: bytes) -> Outcome:
    async def run() -> Outcome:
        transport = httpx.MockTransport(lambda _: httpx.Response(status, content=content))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return (await ask(client, request))[0]

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("request_", "status", "content", "expected"),
    [
        (STREAM, 200, sse(CHUNK, "[DONE]"), "answered"),
        (STREAM, 200, sse({"type": "message_stop"}), "answered"),
        (STREAM, 200, sse({"type": "response.completed"}), "answered"),
        (STREAM, 200, sse(CHUNK, ERROR), "failed"),
        (STREAM, 200, sse({"type": "response.failed"}), "failed"),
        (STREAM, 200, sse(CHUNK), "broken"),
        (STREAM, 200, b"", "broken"),
        (STREAM, 200, sse(ERROR, ERROR), "broken"),
        (STREAM, 200, sse(ERROR, "[DONE]"), "broken"),
        (STREAM, 200, sse("[DONE]", CHUNK), "broken"),
        (STREAM._replace(leaves_after=1), 200, sse(CHUNK, CHUNK), "left"),
        (PLAIN, 200, b'{"id": "a"}', "answered"),
        (PLAIN, 200, b"{}", "broken"),
        (PLAIN, 503, json.dumps(ERROR).encode(), "refused"),
        (PLAIN, 429, json.dumps(ERROR).encode(), "refused"),
        (PLAIN, 503, b"", "broken"),
        (PLAIN, 500, json.dumps(ERROR).encode(), "broken"),
        (PLAIN, 400, json.dumps(ERROR).encode(), "broken"),
        (GARBAGE, 400, json.dumps(ERROR).encode(), "refused"),
        (GARBAGE, 503, json.dumps(ERROR).encode(), "refused"),
        (GARBAGE, 500, json.dumps(ERROR).encode(), "broken"),
        (GARBAGE, 200, b'{"id": "a"}', "broken"),
    ],
)
def test_outcomes(request_: Request, status: int, content: bytes, expected: Outcome) -> None:
    assert outcome(request_, status, content) == expected


def test_a_connection_that_breaks_is_broken() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.RemoteProtocolError("gone")

    async def run() -> Ended:
        transport = httpx.MockTransport(refuse)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await ask(client, PLAIN)

    assert asyncio.run(run())[0] == "broken"


@pytest.mark.parametrize("seed", range(5))
def test_every_kind_of_request_can_be_made(seed: int) -> None:
    for _, kind in KINDS:
        made = kind(random.Random(seed), "model")
        assert made == kind(random.Random(seed), "model"), "a seed says it all"
        assert made.refused or json.loads(made.body)["model"] == "model"


@pytest.mark.parametrize(
    ("growth", "seconds", "good"),
    [(0.0, 2 * JUDGED_S, True), (0.05, 2 * JUDGED_S, False), (0.05, JUDGED_S / 2, None)],
)
def test_memory_is_judged_after_warm_up(growth: float, seconds: float, good: bool | None) -> None:
    samples, warm_up, steady = 1000, 200, 100 * 2**20
    memory = Memory()
    for number in range(samples):
        share = number / samples
        size = steady / 2 if number < warm_up else steady * (1 + growth * share)
        memory.take(share * seconds, round(size))
    assert memory.check("it").good is good

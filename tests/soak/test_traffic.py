"""tests.soak: what it calls broken is broken, and what it lets pass is not."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import httpx
import pytest

from tests.soak.memory import JUDGED_S, Memory
from tests.soak.traffic import CLOSING_S, CUT_LIMIT_S, KINDS, Ended, Findings, Outcome, Request, ask

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

    ended = asyncio.run(run())
    assert ended.outcome == "broken" and ended.lost


KILL_S = 100.0
LOST = Ended("broken", "gone", lost=True)


@pytest.mark.parametrize(
    ("begin_s", "end_s", "expected"),
    [
        (KILL_S - 3, KILL_S + 0.1, "cut"),
        (KILL_S + CLOSING_S / 2, KILL_S + CLOSING_S, "cut"),
        (KILL_S - 3, KILL_S - 0.1, "broken"),
        (KILL_S + CLOSING_S + 0.1, KILL_S + CLOSING_S + 0.2, "broken"),
        (KILL_S - 3, KILL_S + CUT_LIMIT_S + 0.1, "broken"),
    ],
)
def test_only_a_request_of_a_killed_process_may_be_cut(
    begin_s: float, end_s: float, expected: Outcome
) -> None:
    findings = Findings()
    findings.api_killed(KILL_S)
    findings.note(LOST, begin_s, end_s)
    assert findings.outcomes == {expected: 1} and not findings.spared
    assert len(findings.examples) == (expected == "broken")


def test_other_requests_go_on_when_a_process_is_killed() -> None:
    findings = Findings()
    findings.note(LOST, 0.0, 1.0)
    findings.api_killed(KILL_S)
    for ended in (Ended("answered"), Ended("left"), Ended("broken", "no end behind")):
        findings.note(ended, KILL_S - 1, KILL_S + 1)
    findings.note(Ended("answered"), KILL_S + 0.5, KILL_S + 1)
    assert findings.spared == 3, "those that ran at that moment"
    assert findings.outcomes == {"answered": 2, "left": 1, "broken": 2}


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

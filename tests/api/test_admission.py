"""The door in front of the engine: taken or refused by its last snapshot, with the time to wait."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from api.admission import Door
from api.errors import ApiError
from engine.messages import Snapshot
from scheduler.admission import Sizes
from tests.api.scripted_engine import MODEL, Scripted, body
from tests.api.test_server import USER, http

CHAT = "/v1/chat/completions"


def snapshot(**fields: Any) -> Snapshot:
    """At rest, but for what the fields say."""
    pages = {"live_pages": 0, "idle_pages": {}, "free_pages": 64, "total_pages": 64}
    rates = {"prefill_tokens_per_s": 0.0, "decode_tokens_per_s": 0.0, "preemptions": 0}
    state = {"step": 1, "running": 0, "waiting": 0, "backlog_tokens": 0}
    return Snapshot(**{**state, **pages, **rates, **fields})


def busy(**fields: Any) -> Snapshot:
    """Ten seconds of prompts, all from one tenant."""
    load = {"waiting": 4, "backlog_tokens": 1000, "tenant_backlog_tokens": {"flood": 1000}}
    return snapshot(**{**load, "drain_tokens_per_s": 100.0, **fields})


def limit(scripted: Scripted, requests: int = 100, tokens: int = 1000) -> Door:
    scripted.engine.ready = msgspec.structs.replace(
        scripted.engine.ready, max_queued_requests=requests, max_queued_tokens=tokens
    )
    door = Door(scripted.engine)  # type: ignore[arg-type]
    scripted.service._submitter._door = door
    return door


def refused(door: Door, sizes: Sizes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        door.admit(sizes)
    return caught.value


def test_before_the_first_snapshot_only_limits_count(scripted: Scripted) -> None:
    door = limit(scripted, tokens=100)
    assert refused(door, Sizes(prompt_tokens=5000)).status == 400
    door.admit(Sizes(prompt_tokens=4000, deadline_s=0.001))
    assert refused(door, Sizes(prompt_tokens=1)).code == "backlog_full"


def test_what_was_sent_counts_until_a_snapshot_has_seen_it(scripted: Scripted) -> None:
    door = limit(scripted, requests=3)
    scripted.engine.snapshot = snapshot()  # type: ignore[assignment]
    for _ in range(3):
        door.admit(Sizes(prompt_tokens=10, tenant="a"))
    assert refused(door, Sizes(prompt_tokens=10)).code == "queue_full"
    # The engine had taken in two of the three when it sent this; they run already.
    scripted.engine.snapshot = snapshot(submits=2, backlog_tokens=5)  # type: ignore[assignment]
    load = door.load()
    assert (load.waiting, load.backlog_tokens, load.tenant_backlog_tokens) == (1, 15, {"a": 10})
    scripted.engine.snapshot = snapshot(submits=3)  # type: ignore[assignment]
    assert door.load().waiting == door.load().backlog_tokens == 0


def test_what_a_prompt_finds_in_the_cache_counts_no_more_once_it_is_known(
    scripted: Scripted,
) -> None:
    door = limit(scripted)
    numbers = [door.admit(Sizes(prompt_tokens=400, tenant=name)) for name in ("a", "b")]
    door.accepted(numbers[1], 384)
    assert door.load().tenant_backlog_tokens == {"a": 400, "b": 16}
    scripted.engine.snapshot = snapshot(submits=2)  # type: ignore[assignment]
    door.accepted(numbers[0], 384)
    assert door.load().backlog_tokens == 0, "the snapshot knows it"


@pytest.mark.parametrize(
    ("deadline", "status", "code", "retry_ms"),
    [(None, 200, None, None), ("60", 200, None, None), ("2.5", 503, "deadline_unreachable", 8000)],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_that_cannot_be_met_is_refused_before_the_headers(
    scripted: Scripted,
    stream: bool,
    deadline: str | None,
    status: int,
    code: str | None,
    retry_ms: int | None,
) -> None:
    limit(scripted, tokens=10_000)
    scripted.engine.snapshot = busy(tenant_backlog_tokens={"": 1000})  # type: ignore[assignment]
    headers = {} if deadline is None else {"x-request-timeout": deadline}
    response = http(
        scripted.backend,
        lambda c: c.post(CHAT, content=body(stream=stream), headers=headers),
    )
    assert response.status_code == status
    if retry_ms is not None:
        prompt_ms = 10 * len(scripted.service.prepare(body())[1].token_ids)
        assert response.json()["error"]["code"] == code
        assert response.json()["error"]["type"] == "overloaded"
        assert int(response.headers["retry-after-ms"]) == retry_ms + prompt_ms
        assert int(response.headers["retry-after"]) == -(-(retry_ms + prompt_ms) // 1000)
        assert not scripted.engine.submits


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf", "1e9", ""])
def test_a_deadline_that_is_no_time_is_refused_by_name(scripted: Scripted, text: str) -> None:
    headers = {"x-request-timeout": text}
    response = http(scripted.backend, lambda c: c.post(CHAT, content=body(), headers=headers))
    assert (response.status_code, response.json()["error"]["param"]) == (400, "x-request-timeout")


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_was_taken_and_misses_its_deadline_ends(
    scripted: Scripted, stream: bool
) -> None:
    """It is never accepted and forgotten: it ends, and what it held is free."""
    scripted.engine.gate.clear()
    scripted.engine.snapshot = snapshot(drain_tokens_per_s=100.0)  # type: ignore[assignment]
    headers = {"x-request-timeout": "0.5"}
    response = http(
        scripted.backend, lambda c: c.post(CHAT, content=body(stream=stream), headers=headers)
    )
    assert response.status_code == (200 if stream else 503)
    assert '"code":"deadline_missed"' in response.text
    assert scripted.engine.open == 0
    assert scripted.engine.aborts == [submit.id for submit in scripted.engine.submits]


def test_an_answer_that_began_in_time_may_go_on(scripted: Scripted) -> None:
    async def run() -> str:
        turn = await scripted.service.start(body(), deadline_s=30.0)
        async with turn:
            pieces = [piece async for piece in turn.pieces()]
        loop = asyncio.get_running_loop()
        assert turn._deadline is not None and turn._deadline.at_s > loop.time()
        return "".join(p.delta.content for p in pieces if isinstance(p.delta.content, str))

    assert asyncio.run(run()) == "Hello!"


def test_a_flood_of_one_key_leaves_the_other_its_share(scripted: Scripted, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first\nsecond\n")

    def ask(client: httpx.AsyncClient, key: str, **fields: Any) -> Any:
        headers = {"authorization": f"Bearer {key}"}
        return client.post(CHAT, content=body(**fields), headers=headers)

    async def use(client: httpx.AsyncClient) -> list[httpx.Response]:
        answers = [await ask(client, "first", user_id=name) for name in ("u1", "u2")]
        flood = scripted.engine.submits[0].tenant
        tokens = {flood: 1000}
        scripted.engine.snapshot = busy(submits=2, tenant_backlog_tokens=tokens)  # type: ignore[assignment]
        answers += [await ask(client, "first", user_id="u3"), await ask(client, "second")]
        return answers

    limit(scripted)
    one, two, flooding, other = http(scripted.backend, use, api_key_file=str(keys))
    assert (one.status_code, two.status_code, other.status_code) == (200, 200, 200)
    assert flooding.status_code == 429
    assert flooding.json()["error"]["code"] == "backlog_full"
    prompt = len(scripted.engine.submits[0].token_ids)
    assert int(flooding.headers["retry-after-ms"]) == 2000 + 10 * prompt, "down to 800"
    first, second, third = scripted.engine.submits
    # A key is one tenant, whatever users it names; they share no prefixes.
    assert first.tenant == second.tenant != third.tenant
    assert first.cache_salt != second.cache_salt
    assert "first" not in first.tenant


def test_a_refusal_costs_the_engine_nothing(scripted: Scripted) -> None:
    limit(scripted, requests=4)
    scripted.engine.snapshot = busy()  # type: ignore[assignment]
    response = http(
        scripted.backend, lambda c: c.post(CHAT, json={"model": MODEL, "messages": USER})
    )
    assert response.status_code == 429
    assert (response.json()["error"]["type"], response.json()["error"]["code"]) == (
        "rate_limit_error",
        "queue_full",
    )
    # Three of four places are what it fills again: half of ten seconds' work is to be done.
    assert response.headers["retry-after-ms"] == "5000"
    assert not scripted.engine.submits and not scripted.engine.open

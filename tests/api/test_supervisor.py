"""api.supervisor: when another engine is started, when none is, and what the server keeps."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from api.backend import Backend
from api.config import ServerConfig
from api.server import create_app
from api.service import ChatService
from api.supervisor import Deaths, EngineSupervisor, RestartLimit
from engine.client import ConfigError, EngineDead, GenerationDefaults
from tests.api.scripted_engine import MODEL, Scripted, ScriptedEngine

WINDOW_S = 60.0
PATIENCE_S = 30


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class MortalEngine(ScriptedEngine):
    """Dies when it is told to; keeps the order of what is done to engines in `story`."""

    def __init__(self, name: int, story: list[str]) -> None:
        super().__init__(lambda submit, choice: [0], vocab_size=320)
        self.name, self._story = name, story
        self._gone = asyncio.Event()

    def die(self, why: str) -> None:
        self.death = why
        self._gone.set()

    async def dead(self) -> str:
        await self._gone.wait()
        assert self.death is not None
        return self.death

    async def close(self) -> None:
        self._story.append(f"close {self.name}")


class Workshop:
    """Makes engines, as many as are asked for; `failures` of the next ones cannot start."""

    def __init__(self) -> None:
        self.story: list[str] = []
        self.engines: list[MortalEngine] = []
        self.failures: list[Exception] = []
        self.served = asyncio.Semaphore(0)

    async def start(self) -> Any:
        if self.failures:
            self.story.append("failure")
            raise self.failures.pop(0)
        self.engines.append(MortalEngine(len(self.engines), self.story))
        self.story.append(f"start {len(self.engines) - 1}")
        return self.engines[-1]

    async def serve(self, engine: Any) -> None:
        self.story.append(f"serve {engine.name}")
        self.served.release()

    def supervisor(self, restarts: int) -> EngineSupervisor:
        limit = RestartLimit(restarts, WINDOW_S)
        return EngineSupervisor(self.start, self.serve, limit, start_limit_s=30.0)


def alone(scenario: Any) -> None:
    asyncio.run(asyncio.wait_for(scenario, PATIENCE_S))


def test_deaths_are_counted_within_the_window() -> None:
    clock = Clock()
    deaths = Deaths(RestartLimit(2, WINDOW_S), clock)
    assert deaths.one_more() and deaths.one_more()
    assert not deaths.one_more()
    clock.now_s += WINDOW_S - 1
    assert not deaths.one_more()
    clock.now_s += WINDOW_S
    assert deaths.one_more()


def test_without_a_limit_deaths_are_counted_and_no_limit_is_named() -> None:
    clock = Clock()
    deaths = Deaths(RestartLimit(None, WINDOW_S), clock)
    assert all(deaths.one_more() for _ in range(1000))
    assert str(deaths) == "death 1000 within 60 s"
    clock.now_s += WINDOW_S
    assert deaths.one_more() and str(deaths) == "death 1 within 60 s"


def test_no_restart_is_allowed_where_the_limit_is_nought() -> None:
    assert not Deaths(RestartLimit(0, WINDOW_S)).one_more()


def test_another_engine_takes_the_place_of_one_that_died() -> None:
    async def scenario() -> None:
        shop = Workshop()
        supervisor = shop.supervisor(3)
        running = asyncio.create_task(supervisor.run())
        await shop.served.acquire()
        shop.engines[0].die("killed")
        await shop.served.acquire()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await supervisor.close()
        # The dead one is gone before another asks for the same memory.
        assert shop.story == ["start 0", "serve 0", "close 0", "start 1", "serve 1", "close 1"]

    alone(scenario())


def test_the_supervisor_gives_up_after_a_death_too_many() -> None:
    async def scenario() -> None:
        shop = Workshop()
        running = asyncio.create_task(shop.supervisor(2).run())
        for number in range(3):
            await shop.served.acquire()
            shop.engines[number].die(f"reason {number}")
        with pytest.raises(EngineDead, match=r"reason 2 \(death 3, 2 allowed within 60 s\)"):
            await running

    alone(scenario())


def test_a_first_engine_that_cannot_start_is_final() -> None:
    async def scenario() -> None:
        shop = Workshop()
        shop.failures = [EngineDead("no such model")]
        with pytest.raises(EngineDead, match="no such model"):
            await shop.supervisor(5).run()
        assert shop.story == ["failure"]

    alone(scenario())


def test_a_later_one_that_cannot_start_counts_as_a_death(monkeypatch: Any) -> None:
    monkeypatch.setattr("api.supervisor.FAILED_START_PAUSE_S", 0.0)

    async def scenario() -> None:
        shop = Workshop()
        running = asyncio.create_task(shop.supervisor(2).run())
        await shop.served.acquire()
        shop.failures = [EngineDead("out of memory")]
        shop.engines[0].die("killed")
        await shop.served.acquire()
        assert "failure" in shop.story
        shop.failures = [EngineDead("still no memory")]
        shop.engines[1].die("killed again")
        with pytest.raises(EngineDead, match="killed again"):
            await running

    alone(scenario())


def test_an_engine_that_never_gets_ready_counts_as_dead() -> None:
    async def never() -> Any:
        await asyncio.Event().wait()

    async def scenario() -> None:
        shop = Workshop()
        supervisor = EngineSupervisor(
            never, shop.serve, RestartLimit(3, WINDOW_S), start_limit_s=0.01
        )
        with pytest.raises(EngineDead, match=r"not ready within 0\.01 s"):
            await supervisor.run()

    alone(scenario())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_engine_restarts", -1),
        ("engine_restart_window_s", 0.0),
        ("engine_start_limit_s", 0.0),
        ("api_server_count", 0),
    ],
)
def test_settings_out_of_range_are_named(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"--{field.replace('_', '-')}"):
        ServerConfig(**{field: value})


def probe(backend: Backend, path: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(backend, ServerConfig()))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.get(path)

    return asyncio.run(ask())


def test_probes_while_another_engine_is_started(scripted: Scripted) -> None:
    backend = scripted.backend
    backend.supervised = True
    scripted.engine.death = "killed"
    assert probe(backend, "/health").status_code == 200
    refused = probe(backend, "/ready")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_dead")
    assert "Another one is loading" in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) >= 1
    backend.supervised = False
    assert probe(backend, "/health").status_code == 503


def test_a_new_engine_brings_its_own_facts_and_keeps_what_was_remembered(
    scripted: Scripted,
) -> None:
    old = scripted.service
    window = old.facts.max_model_len // 2
    engine = ScriptedEngine(
        scripted.engine.script,
        vocab_size=scripted.engine.ready.vocab_size,
        max_model_len=window,
    )
    scripted.engine.death = "killed"
    assert not scripted.backend.alive
    new = ChatService(engine, scripted.encoder, (MODEL,), GenerationDefaults())  # type: ignore[arg-type]
    scripted.backend.answer_with(new)
    assert scripted.backend.alive
    assert scripted.backend.require().facts.max_model_len == window
    assert new.system_fingerprint != old.system_fingerprint
    assert new.conversations.store is old.conversations.store
    assert new.conversations.summaries is old.conversations.summaries
    assert new.conversations.counts is old.conversations.counts
    assert probe(scripted.backend, "/ready").status_code == 200

"""api.grammar.pending: one tenant's slow grammars wait for each other, and not without limit."""

from __future__ import annotations

import asyncio

import pytest

from api.errors import ApiError
from api.grammar import pending
from api.grammar.pending import PendingGrammars
from tests.api.scripted_engine import Scripted, body


def test_a_tenant_has_few_at_once_and_others_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "AT_ONCE", 2)
    monkeypatch.setattr(pending, "MOST_PENDING", 4)

    async def run() -> None:
        line, done = PendingGrammars(), asyncio.Event()
        working: list[str] = []

        async def hold(tenant: str) -> None:
            async with line.place(tenant):
                working.append(tenant)
                await done.wait()

        tasks = [asyncio.create_task(hold("many")) for _ in range(4)]
        await asyncio.sleep(0)
        assert working == ["many", "many"] and len(line) == 4
        with pytest.raises(ApiError) as caught:
            await hold("many")
        assert (caught.value.status, caught.value.code) == (429, "too_many_grammars")
        assert caught.value.retry_after is not None
        tasks.append(asyncio.create_task(hold("one")))
        await asyncio.sleep(0)
        assert working == ["many", "many", "one"]
        tasks[3].cancel()
        await asyncio.gather(tasks[3], return_exceptions=True)
        assert len(line) == 4
        done.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert working.count("many") == 3 and len(line) == 0

    asyncio.run(run())


def test_who_waits_for_a_place_does_so_within_its_deadline(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only place is held by a request whose grammar is never compiled."""
    monkeypatch.setattr(pending, "AT_ONCE", 1)
    never = asyncio.Event()

    async def stuck(message: object) -> None:
        await never.wait()

    monkeypatch.setattr(scripted.engine, "submit", stuck)
    request = body(response_format={"type": "json_object"})
    several = body(prompt=["a", "b"], response_format={"type": "json_object"})

    async def run() -> None:
        first = asyncio.create_task(scripted.service.start(request))
        line = scripted.service._submitter._pending
        while not len(line):
            await asyncio.sleep(0)
        for late in (
            scripted.service.start(request, deadline_s=0.01),
            scripted.service.start_completion(several, deadline_s=0.01),
        ):
            with pytest.raises(ApiError) as caught:
                await late
            assert (caught.value.status, caught.value.code) == (503, "deadline_missed")
            assert "within the 0.01 s" in caught.value.message and caught.value.retry_after
            assert len(line) == 1, "nothing is left of it"
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        # The engine's compiler is as slow: who has a place, too, waits no longer than that.
        with pytest.raises(ApiError, match=r"within the 0\.01 s"):
            await scripted.service.start(request, deadline_s=0.01)
        assert len(line) == 0

    asyncio.run(run())


def test_a_request_holds_its_place_until_the_engine_has_taken_it(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine compiles the grammar once more, on one thread for everybody."""
    monkeypatch.setattr(pending, "MOST_PENDING", 1)
    submit, compiled = scripted.engine.submit, asyncio.Event()

    async def slow(message: object) -> object:
        await compiled.wait()
        return await submit(message)  # type: ignore[arg-type]

    monkeypatch.setattr(scripted.engine, "submit", slow)
    request = body(response_format={"type": "json_object"})

    async def run() -> None:
        first = asyncio.create_task(scripted.service.start(request, tenant="a"))
        line = scripted.service._submitter._pending
        while not len(line):
            await asyncio.sleep(0)
        with pytest.raises(ApiError, match="the limit is 1"):
            await scripted.service.start(request, tenant="a")
        other = asyncio.create_task(scripted.service.start(request, tenant="b"))
        plain = asyncio.create_task(scripted.service.start(body(), tenant="a"))
        compiled.set()
        for task in (first, other, plain):
            async with await task:
                pass
        assert len(line) == 0

    asyncio.run(run())

"""api.submission: who asks, and all prompts of a request or none."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from api.errors import ApiError
from api.submission import all_or_none
from api.turn import Part
from tests.api.scripted_engine import Scripted, body


class Generation:
    """Notes that it was left."""

    def __init__(self) -> None:
        self.left = False

    async def __aenter__(self) -> Generation:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.left = True


def part(generation: Any) -> Part:
    return Part("p", None, generation, [])  # type: ignore[arg-type]


def test_all_are_returned_in_their_order() -> None:
    async def submit(delay: int, generation: Any) -> Part:
        for _ in range(delay):
            await asyncio.sleep(0)
        return part(generation)

    generations = [Generation() for _ in range(3)]

    async def run() -> list[Part]:
        return await all_or_none([submit(3 - n, g) for n, g in enumerate(generations)])

    assert [found.generation for found in asyncio.run(run())] == generations
    assert not any(generation.left for generation in generations)


@pytest.mark.parametrize("cancelled", [False, True])
def test_those_that_were_taken_are_left_when_one_is_not(cancelled: bool) -> None:
    generations = [Generation() for _ in range(2)]
    stuck = asyncio.Event()
    ended: list[str] = []

    async def taken(generation: Any) -> Part:
        return part(generation)

    async def waiting() -> Part:
        try:
            await stuck.wait()
        finally:
            ended.append("waiting")
        raise AssertionError("nobody lets it go on")

    async def refused() -> Part:
        await asyncio.sleep(0)
        raise ApiError(429, "full")

    async def run() -> None:
        submits = [taken(generations[0]), waiting(), taken(generations[1])]
        if not cancelled:
            with pytest.raises(ApiError, match="full"):
                await all_or_none([*submits, refused()])
            return
        task = asyncio.create_task(all_or_none(submits))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert all(generation.left for generation in generations)
    assert ended == ["waiting"]


@pytest.mark.parametrize(
    ("key", "user", "salt", "tenant", "cache_salt"),
    [
        ("", "", "", "", ""),
        ("", "me", "s", "me", "s"),
        ("key", "", "s", "key", "s"),
        ("key", "me", "s", "key", "2:mes"),
        ("key", "m", "es", "key", "1:mes"),
    ],
)
def test_a_key_owns_its_users_and_keeps_them_apart(
    scripted: Scripted, key: str, user: str, salt: str, tenant: str, cache_salt: str
) -> None:
    fields: dict[str, Any] = {"cache_salt": salt, **({"user_id": user} if user else {})}

    async def run() -> None:
        async with await scripted.service.start(body(**fields), tenant=key):
            pass

    asyncio.run(run())
    (submit,) = scripted.engine.submits
    assert (submit.tenant, submit.cache_salt) == (tenant, cache_salt)

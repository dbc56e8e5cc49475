"""api.merge: everything of every source once, in its order; errors and leaving end all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.merge import merged


class Source:
    """Yields its items, giving way before each; notes how it ended."""

    def __init__(self, name: str, count: int, error: Exception | None = None) -> None:
        self.name, self.count, self.error = name, count, error
        self.ended = False

    async def __aiter__(self) -> AsyncIterator[tuple[str, int]]:
        try:
            for number in range(self.count):
                await asyncio.sleep(0)
                yield self.name, number
            if self.error is not None:
                raise self.error
        finally:
            self.ended = True


async def everything(sources: list[Source]) -> list[tuple[str, int]]:
    return [item async for item in merged(sources)]


@given(st.lists(st.integers(0, 6), max_size=5))
def test_every_source_is_read_to_its_end_in_order(counts: list[int]) -> None:
    sources = [Source(str(place), count) for place, count in enumerate(counts)]
    found = asyncio.run(everything(sources))
    for source in sources:
        assert [number for name, number in found if name == source.name] == list(
            range(source.count)
        )
    assert len(found) == sum(counts)


def test_sources_take_turns() -> None:
    names = [name for name, _ in asyncio.run(everything([Source("a", 20), Source("b", 20)]))]
    assert "b" in names[:10] and "a" in names[-10:]


@pytest.mark.parametrize("others", [0, 2])
def test_an_error_ends_all(others: int) -> None:
    sources = [Source("bad", 1, ValueError("broken")), *(Source(str(n), 99) for n in range(others))]
    with pytest.raises(ValueError, match="broken"):
        asyncio.run(everything(sources))
    assert all(source.ended for source in sources)


def test_leaving_lets_go_of_all_sources() -> None:
    sources = [Source("a", 99), Source("b", 99)]

    async def leave_early() -> None:
        async with contextlib.aclosing(merged(sources)) as items:
            assert (await anext(items))[0] in "ab"

    asyncio.run(leave_early())
    assert all(source.ended for source in sources)

"""Several asynchronous iterators read as one, in the order in which news comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from typing import TypeVar

T = TypeVar("T")


class _End:
    """A source has ended: by itself, or with an error."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error


async def merged(sources: Sequence[AsyncIterable[T]]) -> AsyncGenerator[T, None]:
    """Yields what the sources yield until all have ended; raises the first error of any of them.

    Every source is read one item ahead and no further, so a reader that is slow holds all of them
    up. Close the generator (`contextlib.aclosing`) to let go of the sources.
    """
    news: asyncio.Queue[T | _End] = asyncio.Queue(maxsize=1)
    # Who waits for a full queue can be passed by; a lock is handed on in the order of asking.
    next_in_line = asyncio.Lock()

    async def read(source: AsyncIterable[T]) -> None:
        error = None
        try:
            async for item in source:
                async with next_in_line:
                    await news.put(item)
        except Exception as raised:
            error = raised
        await news.put(_End(error))

    if len(sources) == 1:
        async for item in sources[0]:
            yield item
        return
    tasks = [asyncio.create_task(read(source)) for source in sources]
    try:
        left = len(tasks)
        while left:
            found = await news.get()
            if not isinstance(found, _End):
                yield found
            elif found.error is not None:
                raise found.error
            else:
                left -= 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

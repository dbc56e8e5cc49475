"""Keeps an engine running: another takes the place of one that died, until too many have.

Nothing is hidden: what ran on the dead one has ended with an error, and until the new one has
loaded its model new requests are refused. A request that kills engines must not do so for ever,
so with a death too many the supervisor gives up, and whoever runs the server sees it end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NoReturn

import msgspec

from engine.client import EngineClient, EngineDead

logger = logging.getLogger("winnow.api")

FAILED_START_PAUSE_S = 1.0
"""After an engine that died before it was ready: what is missing may come back."""


class RestartLimit(msgspec.Struct, frozen=True):
    """How often something may be started again."""

    restarts: int | None
    """Within `window_s`; 0: never; None: as often as it dies."""
    window_s: float


class Deaths:
    """When it died, as far as that matters for the limit."""

    def __init__(self, limit: RestartLimit, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = limit, clock
        self._at_s: deque[float] = deque()

    def one_more(self) -> bool:
        """Takes a death down; returns whether another start is allowed."""
        now_s = self._clock()
        while self._at_s and now_s - self._at_s[0] >= self._limit.window_s:
            self._at_s.popleft()
        self._at_s.append(now_s)
        restarts = self._limit.restarts
        return restarts is None or len(self._at_s) <= restarts

    def __str__(self) -> str:
        limit = self._limit
        within = f"within {limit.window_s:g} s"
        if limit.restarts is None:
            return f"death {len(self._at_s)} {within}"
        return f"death {len(self._at_s)}, {limit.restarts} allowed {within}"


class EngineSupervisor:
    """One engine at a time. `run` it, then `close` it."""

    def __init__(
        self,
        start: Callable[[], Awaitable[EngineClient]],
        serve: Callable[[EngineClient], Awaitable[None]],
        limit: RestartLimit,
        *,
        start_limit_s: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """serve: puts a new engine to work. start_limit_s: an engine that is not ready by then
        counts as dead; None: it may take as long as it likes."""
        self.engine: EngineClient | None = None
        """The last one that was ready."""
        self._start, self._serve = start, serve
        self._start_limit_s = start_limit_s
        self._deaths = Deaths(limit, clock)

    async def run(self) -> NoReturn:
        """Starts engines until it is cancelled.

        Raises EngineDead when the very first cannot be started, and when too many have died;
        besides, what `serve` raises.
        """
        engine = await self._started()
        while True:
            why = await engine.dead()
            while True:
                if not self._deaths.one_more():
                    raise EngineDead(f"{why} ({self._deaths})")
                logger.error("%s (%s): another is started", why, self._deaths)
                try:
                    engine = await self._started()
                    break
                except EngineDead as error:
                    why = str(error)
                    await asyncio.sleep(FAILED_START_PAUSE_S)

    async def close(self) -> None:
        """Ends the engine there is. `run` must be over, or it would start another."""
        if self.engine is not None:
            await self.engine.close()

    async def _started(self) -> EngineClient:
        # The one before must have given its memory back.
        await self.close()
        begin_s = time.monotonic()
        try:
            async with asyncio.timeout(self._start_limit_s):
                self.engine = await self._start()
        except TimeoutError as error:
            raise EngineDead(
                f"the engine was not ready within {self._start_limit_s:g} s"
            ) from error
        await self._serve(self.engine)
        logger.info("the engine was ready after %.1f s", time.monotonic() - begin_s)
        return self.engine

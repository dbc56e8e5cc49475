"""The door: who is taken, by the engine's last snapshot and what was sent since.

    number = door.admit(sizes)                      # ApiError 429 or 503, with the time to wait
    generation = await engine.submit(...)           # at once: both sides count submits
    door.accepted(number, generation.cached_tokens)

A snapshot says how many submits it has seen; those sent later are added to it, so a burst between
two snapshots finds the same limits as a slow crowd. What a prompt will find in the cache is not
known before it is accepted; until then it counts in full.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec

from api.errors import ApiError
from engine.client import EngineClient
from engine.messages import Snapshot
from scheduler.admission import (
    UNKNOWN_RETRY_S,
    Backlog,
    Gate,
    Limits,
    Sizes,
    after,
    wait_s,
)


class Door:
    """Decides on requests of one API process to one engine."""

    def __init__(self, engine: EngineClient) -> None:
        ready = engine.ready
        self._engine = engine
        self._gate = Gate(
            Limits(
                max_model_len=ready.max_model_len,
                max_queued_requests=ready.max_queued_requests,
                max_queued_tokens=ready.max_queued_tokens,
            )
        )
        self._sent: dict[int, Sizes] = {}
        """Requests that the last snapshot has not seen, by their number, in order."""
        self._submits = 0
        self._snapshot: Snapshot | None = None
        self._load = Backlog()

    def admit(self, sizes: Sizes) -> int:
        """Takes a request, to be submitted before anything else is; returns its number.

        Raises ApiError(400, 429 or 503), the latter two with the seconds to wait.
        """
        load = self.load()
        refused = self._gate.decide(load, sizes)
        if refused is not None:
            raise ApiError(
                refused.status,
                f"{refused.message[:1].upper()}{refused.message[1:]}.",
                param=refused.param,
                code=refused.code,
                retry_after=refused.retry_after_s,
            )
        self._submits += 1
        self._sent[self._submits] = sizes
        self._load = after(load, sizes)
        return self._submits

    def accepted(self, number: int, cached_tokens: int) -> None:
        """Says how much of a request's prompt was in the cache."""
        self.load()
        sizes = self._sent.get(number)
        if sizes is not None and cached_tokens:
            left = sizes.prompt_tokens - cached_tokens
            self._sent[number] = msgspec.structs.replace(sizes, prompt_tokens=left)
            self._count()

    def load(self) -> Backlog:
        """Returns the last snapshot's backlog with everything sent since."""
        snapshot = self._engine.snapshot
        if snapshot is not self._snapshot and snapshot is not None:
            self._snapshot = snapshot
            while self._sent and (first := next(iter(self._sent))) <= snapshot.submits:
                del self._sent[first]
            self._count()
        return self._load

    def _count(self) -> None:
        load = Backlog()
        if (snapshot := self._snapshot) is not None:
            load = Backlog(
                waiting=snapshot.waiting,
                backlog_tokens=snapshot.backlog_tokens,
                tenant_backlog_tokens=snapshot.tenant_backlog_tokens,
                drain_tokens_per_s=snapshot.drain_tokens_per_s,
            )
        for sizes in self._sent.values():
            load = after(load, sizes)
        self._load = load


class Deadline:
    """When a request's first token must have come."""

    def __init__(self, door: Door, sizes: Sizes, at_s: float) -> None:
        """at_s: by the event loop's clock."""
        self.at_s = at_s
        self._door, self._sizes = door, sizes

    def missed(self) -> ApiError:
        """A 503: the request was taken, and yet no token came in time."""
        return ApiError(
            503,
            f"No token came within the {self._sizes.deadline_s:g} s that the request allows.",
            code="deadline_missed",
            retry_after=wait_s(self._door.load(), self._sizes.tenant) or UNKNOWN_RETRY_S,
        )


@contextlib.asynccontextmanager
async def in_time(deadline: Deadline | None) -> AsyncIterator[None]:
    """Ends what is done within it once the deadline has passed. Raises ApiError(503) then."""
    if deadline is None:
        yield
        return
    try:
        async with asyncio.timeout_at(deadline.at_s) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise deadline.missed() from None

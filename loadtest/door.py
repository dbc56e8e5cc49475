"""The API's side of admission: it sees a replica as the last snapshot showed it.

A snapshot comes a few times a second; what was let in since is added to it. Who is refused hears so
at once, and when to come back. How true that was is measured here as well: the refused request is
held up to every later snapshot until it would be let in.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec.structs import replace

from scheduler.admission import Backlog, Gate, Limits, Sizes, after
from scheduler.outcome import Refusal

SNAPSHOT_INTERVAL_S = 0.25


class Wait(NamedTuple):
    """What a refused request was told, and how long it would have taken."""

    told_s: float
    real_s: float


class Door:
    """Decides over requests; `waits` grows as refused ones would be let in."""

    def __init__(self, limits: Limits, interval_s: float = SNAPSHOT_INTERVAL_S) -> None:
        self.interval_s = interval_s
        self.load = Backlog()
        self.waits: list[Wait] = []
        self._gate = Gate(limits)
        self._turned_away: list[tuple[float, float, Sizes]] = []
        """(when, told to come back after, what)."""
        self._next_s = 0.0

    def decide(self, sizes: Sizes, now_s: float) -> Refusal | None:
        """Returns why a request is refused; None when it is let in, and counted."""
        no = self._gate.decide(self.load, sizes)
        if no is None:
            self.load = after(self.load, sizes)
        elif no.retry_after_s is not None:
            self._turned_away.append((now_s, no.retry_after_s, sizes))
        return no

    def found(self, tenant: str, cached_tokens: int) -> None:
        """Takes off what a request let in since the last snapshot has found in the cache."""
        if cached_tokens:
            by_tenant = dict(self.load.tenant_backlog_tokens)
            by_tenant[tenant] -= cached_tokens
            if not by_tenant[tenant]:
                del by_tenant[tenant]
            left = self.load.backlog_tokens - cached_tokens
            self.load = replace(self.load, backlog_tokens=left, tenant_backlog_tokens=by_tenant)

    def is_due(self, now_s: float) -> bool:
        """Whether the next snapshot would be sent now."""
        return now_s >= self._next_s

    def update(self, load: Backlog, now_s: float) -> None:
        """Takes a snapshot's load."""
        self._next_s = now_s + self.interval_s
        self.load = load
        still = []
        for when_s, told_s, sizes in self._turned_away:
            if self._gate.look(load, sizes) is None:
                self.waits.append(Wait(told_s, now_s - when_s))
            else:
                still.append((when_s, told_s, sizes))
        self._turned_away = still

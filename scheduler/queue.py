"""The queue: who starts next, and who waits for somebody else to compute a prefix.

Order: priority, then the tenant served least (`scheduler.fairness`); among a tenant's own requests
arrival, where those that continue count as having come earlier. The pages of a turn that waits for
its tools are kept for it, so the sooner it goes on, the sooner they are of use to others; a new
turn needs pages of its own, and cannot be passed for ever. One heap of tenants per priority and one
of requests per tenant: O(log tenants + log requests) per decision.

Counters grow while tenants wait, so an entry of the heap may be too low; it is brought up to date
when it comes to the top.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from heapq import heappop, heappush, heapreplace

from scheduler.fairness import ServiceCounters
from scheduler.request import Sequence

HEAD_START = 512
"""Arrivals by which those that continue go before others of their tenant."""


Turn = tuple[int, int]
"""Place among a tenant's own, and the arrival that no other has."""


def _turn(sequence: Sequence) -> Turn:
    arrival = sequence.arrival
    return (arrival - HEAD_START if sequence.continues else arrival), arrival


class _Level:
    """Requests of one priority."""

    def __init__(self) -> None:
        self.tenants: list[tuple[int, Turn, str]] = []
        """Heap of (served, turn of the tenant's first, tenant), one entry per lane."""
        self.lanes: dict[str, list[tuple[Turn, Sequence]]] = {}
        """Tenant -> heap of (turn, sequence)."""


class WaitingQueue:
    """Sequences that do not run: in line, or parked behind the one that computes their prefix."""

    def __init__(self, service: ServiceCounters) -> None:
        self.service = service
        self._levels: dict[int, _Level] = {}
        self._priorities: list[int] = []
        self._parked: dict[int, list[tuple[int, Sequence]]] = {}
        """Arrival of a leader -> (pages it must have published, follower)."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Sequence]:
        """Yields every waiting sequence, in no useful order."""
        for level in self._levels.values():
            for lane in level.lanes.values():
                yield from (sequence for _, sequence in lane if sequence.waiting)
        for followers in self._parked.values():
            yield from (sequence for _, sequence in followers if sequence.waiting)

    def push(self, sequence: Sequence) -> None:
        """Puts a sequence in line; `continues` must not change while it waits."""
        sequence.waiting = True
        self._count += 1
        self._enter(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it waits; it never waits again.

        Its entry stays until it comes to the top, and is made light: what lies behind a request
        that is never served must not hold prompts.
        """
        sequence.waiting = False
        sequence.prompt_ids, sequence.keys = [], []
        self._count -= 1

    def head(self) -> Sequence | None:
        """Returns who starts next, still in line; None when nobody is."""
        for priority in list(self._priorities):
            level = self._levels[priority]
            while level.tenants:
                served, first, tenant = level.tenants[0]
                lane = level.lanes[tenant]
                while lane and not lane[0][1].waiting:
                    heappop(lane)
                if not lane:
                    heappop(level.tenants)
                    del level.lanes[tenant]
                    continue
                entry = (self.service.served(tenant), lane[0][0], tenant)
                if entry == (served, first, tenant):
                    return lane[0][1]
                heapreplace(level.tenants, entry)
            del self._levels[priority]
            self._priorities.remove(priority)
        return None

    def start(self, sequence: Sequence) -> None:
        """Takes the head out: it runs now."""
        self._leave(sequence)
        sequence.waiting = False
        self._count -= 1
        self.service.choose(sequence.tenant)

    def park(self, sequence: Sequence, leader: Sequence, pages: int) -> None:
        """Takes the head out of line until `leader` has published `pages` pages."""
        self._leave(sequence)
        self._parked.setdefault(leader.arrival, []).append((pages, sequence))

    def unpark(self, leader: Sequence, published_pages: int | None = None) -> None:
        """Puts followers back in line for whom the leader has come far enough; None: all."""
        followers = self._parked.pop(leader.arrival, None)
        if followers is None:
            return
        still = []
        for pages, sequence in followers:
            if not sequence.waiting:
                continue
            if published_pages is None or pages <= published_pages:
                self._enter(sequence)
            else:
                still.append((pages, sequence))
        if still:
            self._parked[leader.arrival] = still

    def _enter(self, sequence: Sequence) -> None:
        level = self._levels.get(sequence.priority)
        if level is None:
            level = self._levels[sequence.priority] = _Level()
            insort(self._priorities, sequence.priority)
        lane = level.lanes.get(sequence.tenant)
        if not lane:
            self.service.arrive(sequence.tenant)
        if lane is None:
            lane = level.lanes[sequence.tenant] = []
            served = self.service.served(sequence.tenant)
            heappush(level.tenants, (served, _turn(sequence), sequence.tenant))
        heappush(lane, (_turn(sequence), sequence))

    def _leave(self, sequence: Sequence) -> None:
        lane = self._levels[sequence.priority].lanes[sequence.tenant]
        assert lane[0][1] is sequence, "only the head starts"
        heappop(lane)

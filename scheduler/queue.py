"""The queue: who starts next, and who waits for somebody else to compute a prefix.

Order: priority, then the tenant served least (`scheduler.fairness`); among a tenant's own requests
arrival, where those that continue count as having come earlier. The pages of a turn that waits for
its tools are kept for it, so the sooner it goes on, the sooner they are of use to others; a new
turn needs pages of its own. So while a new turn finds no room, turns that continue may go before
it, whoever's; neither that nor the head start lasts for ever. Per priority those that continue
stand in one line and new turns in another, each a heap of tenants and one of requests per tenant:
O(log tenants + log requests) per decision.

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
MOST_PASSES = 64
"""Requests that may go on before a new turn which is next and finds no room."""

Turn = tuple[int, int]
"""Place among a tenant's own, and the arrival that no other has."""


class _Line:
    """Requests of one priority, those that continue or the others."""

    def __init__(self) -> None:
        self.tenants: list[tuple[int, Turn, str]] = []
        """Heap of (served, turn of the tenant's first, tenant), one entry per lane."""
        self.lanes: dict[str, list[tuple[Turn, Sequence]]] = {}
        """Tenant -> heap of (turn, sequence)."""

    def enter(self, sequence: Sequence, served: int) -> None:
        """Adds a request of a tenant with this counter."""
        tenant, arrival = sequence.tenant, sequence.arrival
        turn = (arrival - HEAD_START if sequence.continues else arrival), arrival
        lane = self.lanes.get(tenant)
        if lane is None:
            lane = self.lanes[tenant] = []
            heappush(self.tenants, (served, turn, tenant))
        heappush(lane, (turn, sequence))

    def leave(self, sequence: Sequence) -> None:
        """Takes out who comes first."""
        tenant = sequence.tenant
        lane = self.lanes[tenant]
        assert lane[0][1] is sequence, "only the first of a tenant leaves"
        heappop(lane)
        if not lane and self.tenants[0][2] == tenant:
            heappop(self.tenants)
            del self.lanes[tenant]

    def first(self, service: ServiceCounters) -> tuple[int, Turn, str] | None:
        """Returns the entry of the tenant whose turn it is; None when nobody waits."""
        tenants = self.tenants
        while tenants:
            known = tenants[0]
            tenant = known[2]
            lane = self.lanes[tenant]
            while lane and not lane[0][1].waiting:
                heappop(lane)
            if not lane:
                heappop(tenants)
                del self.lanes[tenant]
                continue
            entry = (service.served(tenant), lane[0][0], tenant)
            if entry == known:
                return known
            heapreplace(tenants, entry)
        return None

    def of(self, tenant: str) -> Sequence:
        """Returns the tenant's first request."""
        return self.lanes[tenant][0][1]


class _Level:
    """Requests of one priority."""

    def __init__(self) -> None:
        self.continuing, self.new = _Line(), _Line()

    def line(self, sequence: Sequence) -> _Line:
        return self.continuing if sequence.continues else self.new

    def head(self, service: ServiceCounters) -> Sequence | None:
        """Returns who comes first of both lines."""
        continuing, new = self.continuing.first(service), self.new.first(service)
        if continuing is not None and (new is None or continuing < new):
            return self.continuing.of(continuing[2])
        return None if new is None else self.new.of(new[2])


class WaitingQueue:
    """Sequences that do not run: in line, or parked behind the one that computes their prefix."""

    def __init__(self, service: ServiceCounters) -> None:
        self.service = service
        self._levels: dict[int, _Level] = {}
        self._priorities: list[int] = []
        self._parked: dict[int, list[tuple[int, Sequence]]] = {}
        """Arrival of a leader -> (pages it must have published, follower)."""
        self.count = 0
        """Sequences that wait, in line and parked."""

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Sequence]:
        """Yields every waiting sequence, in no useful order."""
        for level in self._levels.values():
            for lane in (*level.continuing.lanes.values(), *level.new.lanes.values()):
                yield from (sequence for _, sequence in lane if sequence.waiting)
        for followers in self._parked.values():
            yield from (sequence for _, sequence in followers if sequence.waiting)

    def push(self, sequence: Sequence) -> None:
        """Puts a sequence in line; `continues` must not change while it waits."""
        sequence.waiting = True
        self.count += 1
        self._enter(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it waits; it never waits again.

        Its entry stays until it comes to the top, and is made light: what lies behind a request
        that is never served must not hold prompts.
        """
        sequence.waiting = False
        sequence.prompt_ids, sequence.keys = [], []
        self.count -= 1

    def head(self) -> Sequence | None:
        """Returns who starts next, still in line; None when nobody is."""
        priorities = self._priorities
        while priorities:
            head = self._levels[priorities[0]].head(self.service)
            if head is not None:
                return head
            del self._levels[priorities.pop(0)]
        return None

    def passing(self, head: Sequence) -> Sequence | None:
        """Returns who may start before the head, which finds no room: the first of its priority
        that continues. None when there is none, or the head was passed often enough."""
        if head.continues or head.passed >= MOST_PASSES:
            return None
        line = self._levels[head.priority].continuing
        first = line.first(self.service)
        return line.of(first[2]) if first is not None else None

    def start(self, sequence: Sequence, passed: Sequence | None = None) -> None:
        """Takes the head out, or who passes it: it runs now."""
        if passed is None:
            self.service.choose(sequence.tenant)
        else:
            passed.passed += 1
        self._leave(sequence)
        sequence.waiting = False
        self.count -= 1

    def park(self, sequence: Sequence, leader: Sequence, pages: int) -> None:
        """Takes the head, or who may pass it, out of line until a leader has published pages."""
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
        tenant = sequence.tenant
        if not (level.continuing.lanes.get(tenant) or level.new.lanes.get(tenant)):
            self.service.arrive(tenant)
        level.line(sequence).enter(sequence, self.service.served(tenant))

    def _leave(self, sequence: Sequence) -> None:
        self._levels[sequence.priority].line(sequence).leave(sequence)

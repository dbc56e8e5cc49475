"""Which idle page goes next: a grid of queues, class by log2 of the page's position.

Every operation is O(1).

    class       dead before stable before awaited, always
    position    a late token costs more to compute again than an early one, so its page earns more
    recency     inside a cell, least recently used first

The pages of a run (`scheduler.runs`) were used together and a late one is worth no less than an
early one, so runs are listed, by their last page, and go from there.

Cells of one class are compared by credit: when a page was used last, in pages used so far, plus
what it is worth. A page that costs twice as much as the first of its chain counts as used one
turnover of the cache later; none stays for ever, and with equal worth it is plain LRU. Within a
cell worth is equal and time only grows, so each queue is in order of credit and only the heads of a
class's occupied cells have to be compared.
"""

from __future__ import annotations

from typing import Literal

from scheduler.runs import UNLISTED, Run

IdleClass = Literal["dead", "stable", "awaited"]
EVICTION_ORDER: tuple[IdleClass, ...] = ("dead", "stable", "awaited")

BUCKETS = 32
"""Of log2(position); 2**31 pages are more than any sequence has."""


class EvictionGrid:
    """Idle runs that no cached page follows.

    `doubling_pages` is the position at which a page costs twice as much as the first one; 0 makes
    all equal.
    """

    def __init__(self, total_pages: int, doubling_pages: float = 0.0) -> None:
        turnover = total_pages / doubling_pages if doubling_pages else 0.0
        self._worth = [(1 << bucket >> 1) * turnover for bucket in range(BUCKETS)]
        self._used = 0
        """Pages used so far."""
        # Rings, doubly linked: a prefix hit takes a run out of the middle of its queue, in O(1).
        self._cells = [Run(None, 0) for _ in range(len(EVICTION_ORDER) * BUCKETS)]
        for cell in self._cells:
            cell.previous = cell.next = cell
        self._occupied: list[list[Run]] = [[] for _ in EVICTION_ORDER]
        """Cells that hold runs, by class."""

    def use(self, pages: int) -> int:
        """Lets time go on by the pages that one sequence has used; returns it."""
        self._used += pages
        return self._used

    def credit(self, run: Run) -> float:
        """Returns the credit of a run's last page."""
        return run.used + self._worth[(run.end - 1).bit_length()]

    def add(self, run: Run) -> None:
        """Lists a run by its credit.

        A use older than its cell's newest is rounded up to that one: such a run has just lost what
        followed it while others used it, a place where conversations branch.
        """
        cell = self._cell(run)
        last = cell.previous
        if last is not cell:
            run.used = max(run.used, last.used)
        self._link(run, last, cell, cell)

    def add_next(self, run: Run) -> None:
        """Lists a run that has no more credit than any other of its class."""
        cell = self._cell(run)
        self._link(run, cell, cell.next, cell)

    def remove(self, run: Run) -> None:
        """Takes a listed run out."""
        before, after = run.previous, run.next
        before.next, after.previous = after, before
        run.previous = run.next = UNLISTED
        if before is after:
            self._occupied[run.kind].remove(before)

    def pop(self) -> Run:
        """Returns the run whose last page goes next, taken out; one at least is listed."""
        for occupied in self._occupied:
            if occupied:
                break
        # What `next_of` and `remove` do, without the calls: runs may be as short as a page.
        run = occupied[0].next if len(occupied) == 1 else self._first(occupied)
        before, after = run.previous, run.next
        before.next, after.previous = after, before
        run.previous = run.next = UNLISTED
        if before is after:
            occupied.remove(before)
        return run

    def next_of(self, kind: int) -> Run | None:
        """Returns the run of one class that goes before the others; None when it has none."""
        occupied = self._occupied[kind]
        return self._first(occupied) if occupied else None

    def _first(self, occupied: list[Run]) -> Run:
        # On a tie the cheaper cell: the order of `occupied` must not matter.
        return min((c.next for c in occupied), key=lambda run: (self.credit(run), run.end))

    def _cell(self, run: Run) -> Run:
        return self._cells[run.kind * BUCKETS + (run.end - 1).bit_length()]

    def _link(self, run: Run, before: Run, after: Run, cell: Run) -> None:
        if before is after:
            self._occupied[run.kind].append(cell)
        before.next = after.previous = run
        run.previous, run.next = before, after

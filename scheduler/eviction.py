"""Which idle page goes next: a grid of lists, class by log2 of the page's position.

Every operation is O(1).

    class       dead before stable before awaited, always
    position    a late token costs more to compute again than an early one, so its page earns more
    recency     inside a cell, least recently used first

Cells of one class are compared by credit: when a page was used last, in pages used so far, plus
what it is worth. A page that costs twice as much as the first of its chain counts as used one
turnover of the cache later; none stays for ever, and with equal worth it is plain LRU. Within a
cell worth is equal and time only grows, so each list is in order of credit and only the heads of a
class's occupied cells have to be compared.
"""

from __future__ import annotations

from typing import Literal

IdleClass = Literal["dead", "stable", "awaited"]
EVICTION_ORDER: tuple[IdleClass, ...] = ("dead", "stable", "awaited")

NO_PAGE = -1
BUCKETS = 32
"""Of log2(position); 2**31 pages are more than any sequence has."""


class EvictionGrid:
    """Pages that may be evicted, none of which has a cached page after it.

    Lists are doubly linked through two arrays with a sentinel per cell at total_pages + cell, so
    that a page leaves the middle of its list in O(1) when a prefix hit brings it back to life.
    `doubling_pages` is the position at which a page costs twice as much as the first one; 0 makes
    all equal.
    """

    def __init__(self, total_pages: int, doubling_pages: float = 0.0) -> None:
        self.total_pages = total_pages
        sentinels = range(total_pages, total_pages + len(EVICTION_ORDER) * BUCKETS)
        self._next = [NO_PAGE] * total_pages + list(sentinels)
        self._previous = [NO_PAGE] * total_pages + list(sentinels)
        self.credits = [0.0] * total_pages
        """What each page was credited with when it was last used; written by who uses it."""
        turnover = total_pages / doubling_pages if doubling_pages else 0.0
        self._worth = [(1 << bucket >> 1) * turnover for bucket in range(BUCKETS)]
        self._used = 0
        """Pages used so far."""
        self._occupied: list[list[int]] = [[] for _ in EVICTION_ORDER]
        """Sentinels of the cells that hold pages, by class."""

    def __contains__(self, page: int) -> bool:
        return self._next[page] != NO_PAGE

    def use(self, pages: int) -> None:
        """Lets time go on by the pages that one sequence has used."""
        self._used += pages

    def credit(self, position: int) -> float:
        """Returns the credit of a page that is used now, by its place in its chain."""
        return self._used + self._worth[position.bit_length()]

    def add(self, page: int, kind: int, position: int) -> None:
        """Lists a page by its credit; `kind` is the class's place in EVICTION_ORDER.

        A credit older than its cell's newest is rounded up to that one: such a page has just lost
        the last page after it while others used it, a place where conversations branch.
        """
        sentinel = self.total_pages + kind * BUCKETS + position.bit_length()
        last = self._previous[sentinel]
        if last != sentinel and self.credits[last] > self.credits[page]:
            self.credits[page] = self.credits[last]
        self._link(page, kind, sentinel, last, sentinel)

    def add_next(self, page: int, kind: int, position: int) -> None:
        """Lists a page that has no more credit than any other of its class."""
        sentinel = self.total_pages + kind * BUCKETS + position.bit_length()
        self._link(page, kind, sentinel, sentinel, self._next[sentinel])

    def remove(self, page: int) -> None:
        """Takes a listed page out."""
        next_, previous = self._next, self._previous
        after, before = next_[page], previous[page]
        next_[before], previous[after] = after, before
        next_[page] = previous[page] = NO_PAGE
        if before == after:
            self._occupied[(before - self.total_pages) // BUCKETS].remove(before)

    def pop(self) -> int:
        """Returns the page that goes next, taken out; NO_PAGE when none is listed."""
        next_, previous = self._next, self._previous
        for kind, occupied in enumerate(self._occupied):
            if not occupied:
                continue
            # What `next_of` and `remove` do, without the calls: pages are evicted one by one.
            page = next_[occupied[0]] if len(occupied) == 1 else self.next_of(kind)
            after, before = next_[page], previous[page]
            next_[before], previous[after] = after, before
            next_[page] = previous[page] = NO_PAGE
            if before == after:
                occupied.remove(before)
            return page
        return NO_PAGE

    def next_of(self, kind: int) -> int:
        """Returns the page of one class that goes before the others; NO_PAGE when it has none."""
        credits, next_, occupied = self.credits, self._next, self._occupied[kind]
        if not occupied:
            return NO_PAGE
        if len(occupied) == 1:
            return next_[occupied[0]]
        best, lowest, lowest_cell = NO_PAGE, 0.0, 0
        for sentinel in occupied:
            page = next_[sentinel]
            credit = credits[page]
            # On a tie the cheaper cell: the order of `occupied` must not matter.
            if best < 0 or credit < lowest or (credit == lowest and sentinel < lowest_cell):
                best, lowest, lowest_cell = page, credit, sentinel
        return best

    def _link(self, page: int, kind: int, sentinel: int, before: int, after: int) -> None:
        if before == after:
            self._occupied[kind].append(sentinel)
        self._next[before] = self._previous[after] = page
        self._next[page], self._previous[page] = after, before

"""The page pool: which pages are live, idle (kept for a later prefix hit) or free.

    live + idle by class + free = total

A page is live while sequences hold references; when the last one goes, a page with an identity
becomes idle, one without becomes free. Allocation takes free pages first, then evicts idle ones in
the order of `scheduler.eviction`.

Pages with an identity stand in runs (`scheduler.runs`), and a prefix is held, released and
classified run by run: O(runs), however long it is. A page is evicted only when no page after it is
cached, and a live page's predecessors are live: who publishes a page holds the one before it. Every
idle page can therefore be had, tail first.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import inf

from scheduler.eviction import EVICTION_ORDER, EvictionGrid, IdleClass
from scheduler.runs import NOTHING_FOUND, UNLISTED, Prefix, Run

__all__ = ["EVICTION_ORDER", "IdleClass", "OutOfPages", "PagePool", "Prefix", "Run"]

_KIND = {kind: place for place, kind in enumerate(EVICTION_ORDER)}


class OutOfPages(Exception):
    """Fewer pages are free or idle than asked for; nothing was allocated."""


class PagePool:
    """Page ids 0 .. total - 1, their identities, and who holds them.

    `doubling_pages`: the position, in pages, at which a page costs twice as much to compute again
    as the first of its chain (0: all cost the same).
    """

    def __init__(self, total_pages: int, doubling_pages: float = 0.0) -> None:
        if total_pages < 1:
            raise ValueError(f"total_pages is {total_pages}; it must be at least 1")
        self.total_pages = total_pages
        self.evictions = dict.fromkeys(EVICTION_ORDER, 0)
        """Pages evicted so far, by the class they had."""
        self.now_s = 0.0
        """The time, as whoever plans steps last told it."""
        self._run_of: dict[bytes, Run] = {}
        """Identity -> the run that its page stands in."""
        self._unnamed: set[int] = set()
        """Live pages without identity; each has one holder."""
        self._free = list(range(total_pages - 1, -1, -1))
        # Counted by itself, not as what the others leave: only so can the invariant fail.
        self._live = 0
        self._idle = [0] * len(EVICTION_ORDER)
        self._grid = EvictionGrid(total_pages, doubling_pages)

    @property
    def free_pages(self) -> int:
        return len(self._free)

    @property
    def idle_pages(self) -> dict[str, int]:
        """Idle pages by class."""
        return {str(kind): self._idle[place] for kind, place in _KIND.items()}

    def idle_of(self, idle_class: IdleClass) -> int:
        """Idle pages of one class."""
        return self._idle[_KIND[idle_class]]

    @property
    def available_pages(self) -> int:
        """Pages an allocation can have: free and idle."""
        return len(self._free) + sum(self._idle)

    @property
    def live_pages(self) -> int:
        return self._live

    def unused_s(self, idle_class: IdleClass) -> float:
        """Returns for how long the page of a class that goes next has been idle; infinity when
        the class has none."""
        run = self._grid.next_of(_KIND[idle_class])
        return inf if run is None else self.now_s - run.used_s

    # ---------------------------------------------------------------- pages come and go

    def allocate(self, count: int) -> list[int]:
        """Returns `count` live pages without identity, for one holder.

        Raises OutOfPages when fewer are available; then nothing changes.
        """
        free = self._free
        if count > len(free):
            if count > self.available_pages:
                raise OutOfPages(f"{count} pages asked, {self.available_pages} available")
            self._evict(count - len(free))
        pages = free[: -count - 1 : -1]
        del free[len(free) - count :]
        self._unnamed.update(pages)
        self._live += count
        return pages

    def publish(self, page: int, key: bytes, before: Run | None = None) -> Run | None:
        """Gives a live page its identity, so that prompts find it; returns the run that its holder
        holds from now on.

        `before` is the run held so far, which ends with the page before this one (None: this is a
        chain's first). While another live page has the identity, that one serves, nothing changes
        and None is returned; an idle one is freed in favour of this page.

        Raises ValueError when the page is not live or has an identity.
        """
        if page not in self._unnamed:
            raise ValueError(f"page {page} is not live, or has an identity")
        known = self._run_of.get(key)
        if known is not None:
            return None if known.references else self._take_over(page, known)
        self._unnamed.remove(page)
        run = before
        if run is None or run.references > 1 or run.followers:
            run = Run(before, 0 if before is None else before.end)
            if before is not None:
                before.followers += 1
        run.pages.append(page)
        run.keys.append(key)
        self._run_of[key] = run
        return run

    def release(
        self, run: Run | None, unnamed: Collection[int] = (), idle_class: IdleClass = "stable"
    ) -> None:
        """Takes one reference back of a run and all before it, and frees pages without identity.

        Runs that nobody holds any more are idle. All count as used at one time.

        Raises ValueError when a page or a run is not live.
        """
        if not self._unnamed.issuperset(unnamed) or (run is not None and not run.references):
            raise ValueError("pages are released that are not all live")
        self._unnamed.difference_update(unnamed)
        self._free.extend(unnamed)
        self._live -= len(unnamed)
        used = self._grid.use((0 if run is None else run.end) + len(unnamed))
        kind = _KIND[idle_class]
        while run is not None:
            run.references -= 1
            if not run.references:
                self._live -= len(run.pages)
                self._idle[kind] += len(run.pages)
                self._rest(run, kind, used)
            run = run.before

    # ---------------------------------------------------------------- prefixes

    def count_known(self, keys: Sequence[bytes], limit: int) -> int:
        """Returns how many of the first `limit` identities of a chain are known, in O(log limit):
        whoever is known has a known predecessor."""
        known = self._run_of
        if limit and keys[limit - 1] in known:
            return limit
        low, high = 0, limit
        while low < high:
            middle = (low + high) // 2
            if keys[middle] in known:
                low = middle + 1
            else:
                high = middle
        return low

    def match(self, keys: Sequence[bytes], limit: int | None = None) -> Prefix:
        """Returns the longest prefix of a chain that is known, `limit` pages at most."""
        count = self.count_known(keys, len(keys) if limit is None else min(limit, len(keys)))
        return Prefix(self._run_of[keys[count - 1]], count) if count else NOTHING_FOUND

    def count_idle(self, found: Prefix) -> int:
        """How many pages of a prefix are idle: holding it takes as many available ones away."""
        run, end = found
        while run is not None and not run.references:
            run = run.before
        return end if run is None else max(0, end - run.end)

    def hold(self, found: Prefix) -> Run | None:
        """Adds a reference to every page of a prefix, idle ones are live again; returns the run
        that is held then."""
        held = found.run
        if held is None:
            return None
        if found.end < held.end:
            held = self._split(held, found.end)
        run: Run | None = held
        while run is not None:
            run.references += 1
            if run.references == 1:
                self._live += len(run.pages)
                self._idle[run.kind] -= len(run.pages)
                if run.next is not UNLISTED:
                    self._grid.remove(run)
            run = run.before
        return held

    def reclassify(
        self,
        keys: Sequence[bytes],
        idle_class: IdleClass,
        *,
        first: int = 0,
        was: IdleClass | None = None,
    ) -> None:
        """Moves the idle ones of a chain's pages, from place `first` on, to another class, used
        now.

        Those that are live or unknown stay as they are; with `was`, those of other classes too.
        """
        run, end = self.match(keys)
        if end <= first:
            return
        kind, used = _KIND[idle_class], self._grid.use(len(keys) - first)
        while run is not None and run.end > first and not run.references:
            if was is None or run.kind == _KIND[was]:
                if end < run.end:
                    run = self._split(run, end)
                if run.start < first:
                    self._split(run, first)
                if run.next is not UNLISTED:
                    self._grid.remove(run)
                self._idle[run.kind] -= len(run.pages)
                self._idle[kind] += len(run.pages)
                self._rest(run, kind, used)
            run = run.before

    # ---------------------------------------------------------------- runs

    def _rest(self, run: Run, kind: int, used: int) -> None:
        """Notes that an idle run was used last now, and lists it if nothing follows it."""
        run.kind, run.used, run.used_s = kind, used, self.now_s
        if not run.followers:
            self._grid.add(run)

    def _split(self, run: Run, end: int) -> Run:
        """Returns a new run of a run's pages up to place `end`; the run itself keeps the others,
        its holders and what follows it."""
        front, count = Run(run.before, run.start), end - run.start
        front.pages, front.keys = run.pages[:count], run.keys[:count]
        del run.pages[:count], run.keys[:count]
        run.start, run.before = end, front
        front.followers, front.references = 1, run.references
        front.kind, front.used, front.used_s = run.kind, run.used, run.used_s
        self._run_of.update(dict.fromkeys(front.keys, front))
        return front

    def _take_over(self, page: int, idle: Run) -> Run:
        """Puts a live page in the place of an idle run's first one, which is freed. (Who publishes
        it holds the pages before it, so the idle ones begin here.)"""
        if len(idle.pages) > 1:
            idle = self._split(idle, idle.start + 1)
        elif idle.next is not UNLISTED:
            self._grid.remove(idle)
        self._unnamed.remove(page)
        self._free.append(idle.pages[0])
        idle.pages[0] = page
        idle.references = 1
        self._idle[idle.kind] -= 1
        return idle

    def _evict(self, count: int) -> None:
        """Frees `count` idle pages."""
        grid, free, run_of, idle = self._grid, self._free, self._run_of, self._idle
        idle_before = idle.copy()
        while count > 0:
            run = grid.pop()
            pages, keys = run.pages, run.keys
            left = len(pages) - count
            if left > 0:
                pages, keys = pages[left:], keys[left:]
                del run.pages[left:], run.keys[left:]
                grid.add_next(run)
            free += pages
            for key in keys:
                del run_of[key]
            count -= len(pages)
            idle[run.kind] -= len(pages)
            if left <= 0 and run.before is not None:
                self._lose_follower(run.before, run)
        for name, kind in _KIND.items():
            self.evictions[name] += idle_before[kind] - idle[kind]

    def _lose_follower(self, run: Run, evicted: Run) -> None:
        """Lists an idle run that is the end of its chain now."""
        run.followers -= 1
        if run.followers or run.references:
            return
        grid = self._grid
        # Used no later than what has just gone, it goes next.
        if run.kind == evicted.kind and grid.credit(run) <= grid.credit(evicted):
            grid.add_next(run)
        else:
            grid.add(run)

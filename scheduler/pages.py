"""The page pool: which pages are live, idle (kept for a later prefix hit) or free.

    live + idle by class + free = total

Every operation is O(1) per page. A page is live while sequences hold references; when the last one
goes, a page with an identity becomes idle, one without becomes free. Allocation takes free pages
first, then evicts idle ones in the order of `scheduler.eviction`.

Identities form a prefix tree: a page can be reached only through the page before it. So a page is
evicted only when no page after it is cached, and a live page's predecessors are live: who publishes
a page holds the one before it. Every idle page can therefore be had, tail first.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from scheduler.eviction import EVICTION_ORDER, EvictionGrid, IdleClass

__all__ = ["EVICTION_ORDER", "IdleClass", "OutOfPages", "PagePool"]

_KIND = {kind: place for place, kind in enumerate(EVICTION_ORDER)}


class OutOfPages(Exception):
    """Fewer pages are free or idle than asked for; nothing was allocated."""


class PagePool:
    """Page ids 0 .. total - 1 with reference counts and identities.

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
        self._references = [0] * total_pages
        self._keys: list[bytes | None] = [None] * total_pages
        self._parents: list[bytes | None] = [None] * total_pages
        self._positions = [0] * total_pages
        self._children = [0] * total_pages
        """Cached pages whose parent is this one."""
        self._page_of: dict[bytes, int] = {}
        self._free = list(range(total_pages - 1, -1, -1))
        # Counted by itself, not as what the others leave: only so can the invariant fail.
        self._live = 0
        self._idle = [0] * len(EVICTION_ORDER)
        self._class = [0] * total_pages
        self._used_s = [0.0] * total_pages
        """When each page became idle, or was classified anew."""
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
        page = self._grid.next_of(_KIND[idle_class])
        return self.now_s - self._used_s[page] if page >= 0 else inf

    def references(self, page: int) -> int:
        """How many sequences hold the page."""
        return self._references[page]

    def allocate(self, count: int) -> list[int]:
        """Returns `count` live pages without identity, each with one reference.

        Raises OutOfPages when fewer are available; then nothing changes.
        """
        free = self._free
        if count > len(free):
            if count > self.available_pages:
                raise OutOfPages(f"{count} pages asked, {self.available_pages} available")
            self._evict(count - len(free))
        # Evicted pages lie on top in the order they went, behind nothing: take all that is needed.
        pages = free[: -count - 1 : -1]
        del free[len(free) - count :]
        references = self._references
        for page in pages:
            references[page] = 1
        self._live += count
        return pages

    def publish(
        self, page: int, key: bytes, parent: bytes | None = None, position: int = 0
    ) -> bool:
        """Gives a live page its identity; returns whether a later `share(key)` finds this page.

        `parent` is the identity of the page before it, published by who holds this page, and
        `position` its place in the chain. While another live page has the identity, that one
        serves and nothing changes; an idle one is freed in favour of this page.

        Raises ValueError when the page is not live or has another identity.
        """
        if self._references[page] < 1:
            raise ValueError(f"page {page} is not live")
        own, known = self._keys[page], self._page_of.get(key)
        if own is not None:
            if own != key:
                raise ValueError(f"page {page} has another identity")
            return True
        if known is None:
            if parent is not None and (before := self._page_of.get(parent)) is not None:
                self._children[before] += 1
        elif self._references[known]:
            return False
        else:
            self._forget_idle(known, page)
        self._keys[page], self._parents[page] = key, parent
        self._positions[page] = position
        self._page_of[key] = page
        return True

    def count_known(self, keys: Sequence[bytes], limit: int) -> int:
        """Returns how many of the first `limit` identities of a chain are known, in O(log limit):
        whoever is known has a known predecessor."""
        known = self._page_of
        low, high = 0, limit
        if limit and keys[limit - 1] in known:
            return limit
        while low < high:
            middle = (low + high) // 2
            if keys[middle] in known:
                low = middle + 1
            else:
                high = middle
        return low

    def match(self, keys: Sequence[bytes], limit: int | None = None) -> list[int]:
        """Returns the pages of a chain's leading identities that are known, `limit` at most."""
        count = self.count_known(keys, len(keys) if limit is None else min(limit, len(keys)))
        return list(map(self._page_of.__getitem__, keys[:count]))

    def knows(self, key: bytes) -> bool:
        """Whether a page with this identity is in the pool."""
        return key in self._page_of

    def is_idle(self, key: bytes) -> bool:
        """Whether the page with this identity is idle: sharing it takes an available page away."""
        page = self._page_of.get(key)
        return page is not None and self._references[page] == 0

    def count_idle(self, pages: Sequence[int]) -> int:
        """How many of a chain's leading pages are idle, in O(log pages): those behind a live one's
        predecessors, all of which are live."""
        references = self._references
        low, high = 0, len(pages)
        if not high or references[pages[-1]]:
            return 0
        while low < high:
            middle = (low + high) // 2
            if references[pages[middle]]:
                low = middle + 1
            else:
                high = middle
        return len(pages) - low

    def share(self, key: bytes) -> int:
        """Returns the page with this identity, one reference richer, live again if it was idle.

        Raises KeyError when no page has it.
        """
        page = self._page_of[key]
        self.hold((page,))
        return page

    def hold(self, pages: Sequence[int]) -> None:
        """Adds a reference to each of a chain's leading pages; idle ones are live again."""
        references = self._references
        idle = self.count_idle(pages)
        live = len(pages) - idle
        for page in pages[:live]:
            references[page] += 1
        if not idle:
            return
        revived = pages[live:] if live else pages
        for page in revived:
            references[page] = 1
        # Only the last can be without a cached page after it, and so be listed.
        if not self._children[revived[-1]]:
            self._grid.remove(revived[-1])
        kinds = bytes(map(self._class.__getitem__, revived))
        for kind in range(len(EVICTION_ORDER)):
            self._idle[kind] -= kinds.count(kind)
        self._live += idle

    def release(self, page: int, idle_class: IdleClass = "stable") -> None:
        """Takes one reference of one page back; see `release_chain`."""
        self.release_chain((page,), idle_class)

    def release_chain(self, pages: Sequence[int], idle_class: IdleClass = "stable") -> None:
        """Takes one reference of each page back; the last one makes a page idle, or free without
        identity. The pages are consecutive ones of a chain, and count as used at one time.

        Raises ValueError when a page is not live.
        """
        references, keys, free = self._references, self._keys, self._free
        classes, positions, children = self._class, self._positions, self._children
        kind = _KIND[idle_class]
        grid, idle, freed = self._grid, 0, 0
        grid.use(len(pages))
        credits, credit = grid.credits, grid.credit
        used_s, now_s = self._used_s, self.now_s
        for page in reversed(pages):
            count = references[page] - 1
            if count < 0:
                break
            references[page] = count
            if count:
                continue
            if keys[page] is None:
                freed += 1
                free.append(page)
                continue
            idle += 1
            classes[page] = kind
            used_s[page] = now_s
            credits[page] = credit(positions[page])
            if not children[page]:
                grid.add(page, kind, positions[page])
        self._live -= idle + freed
        self._idle[kind] += idle
        if pages and count < 0:
            raise ValueError(f"page {page} is not live")

    def reclassify(
        self, keys: Sequence[bytes], idle_class: IdleClass, was: IdleClass | None = None
    ) -> None:
        """Moves the idle ones of a chain's pages to another class, used now.

        Those that are live or unknown stay as they are; with `was`, those of other classes too.
        """
        kind, grid = _KIND[idle_class], self._grid
        grid.use(len(keys))
        for key in reversed(keys):
            page = self._page_of.get(key)
            if page is None or self._references[page]:
                continue
            if was is not None and self._class[page] != _KIND[was]:
                continue
            if page in grid:
                grid.remove(page)
            self._idle[self._class[page]] -= 1
            self._idle[kind] += 1
            self._class[page] = kind
            self._used_s[page] = self.now_s
            grid.credits[page] = grid.credit(self._positions[page])
            if not self._children[page]:
                grid.add(page, kind, self._positions[page])

    def _forget_idle(self, page: int, successor: int) -> None:
        """Frees an idle page whose identity, and whose children, another page takes over."""
        if page in self._grid:
            self._grid.remove(page)
        self._idle[self._class[page]] -= 1
        self._children[successor], self._children[page] = self._children[page], 0
        self._keys[page] = self._parents[page] = None
        self._free.append(page)

    def _evict(self, count: int) -> None:
        """Frees `count` idle pages."""
        grid, keys, parents = self._grid, self._keys, self._parents
        pages_of, children, references = self._page_of, self._children, self._references
        classes, idle, free = self._class, self._idle, self._free
        credits = grid.credits
        idle_before = list(idle)
        page = -1
        for _ in range(count):
            if page < 0:
                page = grid.pop()
            kind, key, parent = classes[page], keys[page], parents[page]
            assert key is not None
            del pages_of[key]
            keys[page] = parents[page] = None
            idle[kind] -= 1
            free.append(page)
            evicted, page = page, -1
            if parent is None or (before := pages_of.get(parent)) is None:
                continue
            left = children[before] - 1
            children[before] = left
            if left or references[before]:
                continue
            # The page before it is the end of its chain now. Used no later, it goes next.
            if classes[before] == kind and credits[before] <= credits[evicted]:
                page = before
            else:
                grid.add(before, classes[before], self._positions[before])
        if page >= 0:
            grid.add_next(page, classes[page], self._positions[page])
        for name, place in _KIND.items():
            self.evictions[name] += idle_before[place] - idle[place]

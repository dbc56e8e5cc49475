"""The page pool: which pages are live, idle (kept for a later prefix hit) or free.

    live + idle by class + free = total

Every operation is O(1) per page. A page is live while sequences hold references; when the last one
goes, a page with an identity becomes idle, one without becomes free. Allocation takes free pages
first, then evicts idle ones: dead before stable before awaited, least recently used first.
"""

from __future__ import annotations

from typing import Literal

IdleClass = Literal["dead", "stable", "awaited"]
EVICTION_ORDER: tuple[IdleClass, ...] = ("dead", "stable", "awaited")

NO_PAGE = -1


class OutOfPages(Exception):
    """Fewer pages are free or idle than asked for; nothing was allocated."""


class PagePool:
    """Page ids 0 .. total - 1 with reference counts, identities and idle lists.

    Idle lists are doubly linked through two arrays, so that a page leaves the middle of its list
    in O(1) when a prefix hit brings it back to life.
    """

    def __init__(self, total_pages: int) -> None:
        if total_pages < 1:
            raise ValueError(f"total_pages is {total_pages}; it must be at least 1")
        self.total_pages = total_pages
        self._references = [0] * total_pages
        self._keys: list[bytes | None] = [None] * total_pages
        self._page_of: dict[bytes, int] = {}
        self._free = list(range(total_pages - 1, -1, -1))
        # Counted by itself, not as what the others leave: only so can the invariant fail.
        self._live = 0
        self._class: list[IdleClass | None] = [None] * total_pages
        self._idle = {kind: 0 for kind in EVICTION_ORDER}
        # One ring per class through a sentinel at total_pages + class: next of the sentinel is the
        # least recently used page.
        sentinels = range(total_pages, total_pages + len(EVICTION_ORDER))
        self._sentinel = dict(zip(EVICTION_ORDER, sentinels, strict=True))
        self._next = [NO_PAGE] * total_pages + list(sentinels)
        self._previous = [NO_PAGE] * total_pages + list(sentinels)

    @property
    def free_pages(self) -> int:
        return len(self._free)

    @property
    def idle_pages(self) -> dict[str, int]:
        """Idle pages by class."""
        return {str(kind): count for kind, count in self._idle.items()}

    @property
    def available_pages(self) -> int:
        """Pages an allocation can have: free and idle."""
        return len(self._free) + sum(self._idle.values())

    @property
    def live_pages(self) -> int:
        return self._live

    def references(self, page: int) -> int:
        """How many sequences hold the page."""
        return self._references[page]

    def allocate(self, count: int) -> list[int]:
        """Returns `count` live pages without identity, each with one reference.

        Raises OutOfPages when fewer are available; then nothing changes.
        """
        if count > self.available_pages:
            raise OutOfPages(f"{count} pages asked, {self.available_pages} available")
        pages = []
        for _ in range(count):
            page = self._free.pop() if self._free else self._evict()
            self._references[page] = 1
            self._live += 1
            pages.append(page)
        return pages

    def publish(self, page: int, key: bytes) -> None:
        """Gives a live page its identity; a later `share(key)` finds it.

        When another page already has this identity nothing changes: the first one serves.
        """
        if self._references[page] < 1:
            raise ValueError(f"page {page} is not live")
        if self._keys[page] is None and key not in self._page_of:
            self._keys[page] = key
            self._page_of[key] = page

    def knows(self, key: bytes) -> bool:
        """Whether a page with this identity is in the pool."""
        return key in self._page_of

    def is_idle(self, key: bytes) -> bool:
        """Whether the page with this identity is idle: sharing it takes an available page away."""
        page = self._page_of.get(key, NO_PAGE)
        return page != NO_PAGE and self._references[page] == 0

    def share(self, key: bytes) -> int:
        """Returns the page with this identity, one reference richer, live again if it was idle.

        Raises KeyError when no page has it.
        """
        page = self._page_of[key]
        if self._references[page] == 0:
            self._unlink(page)
            self._live += 1
        self._references[page] += 1
        return page

    def release(self, page: int, idle_class: IdleClass = "stable") -> None:
        """Takes one reference back; the last one makes the page idle, or free without identity.

        Raises ValueError when the page is not live.
        """
        if self._references[page] < 1:
            raise ValueError(f"page {page} is not live")
        self._references[page] -= 1
        if self._references[page]:
            return
        self._live -= 1
        if self._keys[page] is None:
            self._free.append(page)
        else:
            self._link(page, idle_class)

    def reclassify(self, key: bytes, idle_class: IdleClass) -> None:
        """Moves an idle page to another class, most recently used; live or unknown: no change."""
        if self.is_idle(key):
            page = self._page_of[key]
            self._unlink(page)
            self._link(page, idle_class)

    def _link(self, page: int, idle_class: IdleClass) -> None:
        sentinel = self._sentinel[idle_class]
        last = self._previous[sentinel]
        self._next[last], self._previous[page] = page, last
        self._next[page], self._previous[sentinel] = sentinel, page
        self._class[page] = idle_class
        self._idle[idle_class] += 1

    def _unlink(self, page: int) -> None:
        kind = self._class[page]
        assert kind is not None
        before, after = self._previous[page], self._next[page]
        self._next[before], self._previous[after] = after, before
        self._next[page] = self._previous[page] = NO_PAGE
        self._class[page] = None
        self._idle[kind] -= 1

    def _evict(self) -> int:
        for kind in EVICTION_ORDER:
            page = self._next[self._sentinel[kind]]
            if page < self.total_pages:
                self._unlink(page)
                key = self._keys[page]
                assert key is not None
                del self._page_of[key]
                self._keys[page] = None
                return page
        raise OutOfPages("no idle page")

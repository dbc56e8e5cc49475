"""What must hold of a page pool at any time, read off its insides."""

from __future__ import annotations

from scheduler.eviction import BUCKETS, EVICTION_ORDER
from scheduler.pages import PagePool


def check_pool(pool: PagePool) -> None:
    """Counts are exact, identities form a tree without orphans, and its idle leaves are listed."""
    total = pool.total_pages
    references, keys = pool._references, pool._keys
    live = [page for page in range(total) if references[page]]
    idle = [page for page in range(total) if not references[page] and keys[page] is not None]
    assert min(references) >= 0
    assert pool.live_pages == len(live)
    assert sorted([*live, *idle, *pool._free]) == list(range(total)), "a page lost or doubled"
    assert pool.live_pages + sum(pool.idle_pages.values()) + pool.free_pages == total
    for place, kind in enumerate(EVICTION_ORDER):
        assert pool.idle_of(kind) == sum(pool._class[page] == place for page in idle)

    assert pool._page_of == {key: page for page, key in enumerate(keys) if key is not None}
    children = [0] * total
    for page in range(total):
        parent = pool._parents[page]
        if parent is None:
            continue
        assert parent in pool._page_of, "a page that can no longer be reached"
        before = pool._page_of[parent]
        children[before] += 1
        assert pool._positions[page] == pool._positions[before] + 1
        assert references[before] or not references[page], "live behind an idle page"
    assert pool._children == children

    grid = pool._grid
    assert [p for p in range(total) if p in grid] == [p for p in idle if not children[p]]
    for cell in range(len(EVICTION_ORDER) * BUCKETS):
        sentinel, credits = total + cell, []
        page = grid._next[sentinel]
        while page != sentinel:
            assert pool._class[page] == cell // BUCKETS
            assert pool._positions[page].bit_length() == cell % BUCKETS
            credits.append(grid.credits[page])
            page = grid._next[page]
        assert credits == sorted(credits), "a cell out of order"
        assert (sentinel in grid._occupied[cell // BUCKETS]) == bool(credits)

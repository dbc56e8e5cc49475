"""What must hold of a page pool at any time, read off its insides."""

from __future__ import annotations

from scheduler.eviction import BUCKETS, EVICTION_ORDER
from scheduler.pages import PagePool, Run
from scheduler.runs import UNLISTED


def references(pool: PagePool, page: int) -> int:
    """How many sequences hold a page."""
    if page in pool._unnamed:
        return 1
    return sum(run.references for run in runs_of(pool) if page in run.pages)


def runs_of(pool: PagePool) -> list[Run]:
    """Every run once."""
    return list(dict.fromkeys(pool._run_of.values()))


def check_pool(pool: PagePool) -> None:
    """Counts are exact, identities form a tree without orphans, and its idle leaves are listed."""
    runs = runs_of(pool)
    live = [page for run in runs if run.references for page in run.pages]
    idle = [page for run in runs if not run.references for page in run.pages]
    assert pool.live_pages == len(live) + len(pool._unnamed)
    everywhere = sorted([*live, *pool._unnamed, *idle, *pool._free])
    assert everywhere == list(range(pool.total_pages)), "a page lost or doubled"
    total = pool.live_pages + sum(pool.idle_pages.values()) + pool.free_pages
    assert total == pool.total_pages
    for place, kind in enumerate(EVICTION_ORDER):
        assert pool.idle_of(kind) == sum(
            len(run.pages) for run in runs if not run.references and run.kind == place
        )

    assert sorted(pool._run_of) == sorted(key for run in runs for key in run.keys)
    for run in runs:
        assert len(run.pages) == len(run.keys) >= 1
        assert all(pool._run_of[key] is run for key in run.keys)
        followers = [other for other in runs if other.before is run]
        assert run.followers == len(followers)
        assert run.references >= sum(other.references for other in followers), "live behind idle"
        if run.before is None:
            assert run.start == 0
        else:
            assert run.before in runs, "a run that can no longer be reached"
            assert run.start == run.before.end

    grid, listed = pool._grid, []
    for place, cell in enumerate(grid._cells):
        queue, run = [], cell.next
        while run is not cell:
            assert run.previous.next is run and run.next.previous is run
            assert run.kind == place // BUCKETS
            assert (run.end - 1).bit_length() == place % BUCKETS
            queue.append(run)
            run = run.next
        credits = [grid.credit(run) for run in queue]
        assert credits == sorted(credits), "a cell out of order"
        assert any(cell is other for other in grid._occupied[place // BUCKETS]) == bool(queue)
        listed += queue
    leaves = [run for run in runs if not run.references and not run.followers]
    assert sorted(map(id, listed)) == sorted(map(id, leaves))
    assert all((run.next is not UNLISTED) == (run in listed) for run in runs)

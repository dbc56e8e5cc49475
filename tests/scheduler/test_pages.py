from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scheduler.pages import EVICTION_ORDER, IdleClass, OutOfPages, PagePool

TOTAL = 6
KEYS = [bytes([n]) for n in range(8)]
CLASSES = st.sampled_from(EVICTION_ORDER)


class PoolAgainstModel(RuleBasedStateMachine):
    """The pool beside a model of plain lists: owners of live pages, idle ones in eviction order."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(TOTAL)
        self.owners: dict[int, int] = {}
        self.keys: dict[int, bytes] = {}
        self.idle: dict[IdleClass, list[int]] = {kind: [] for kind in EVICTION_ORDER}

    @property
    def free(self) -> int:
        return TOTAL - len(self.owners) - sum(map(len, self.idle.values()))

    def page_of(self, key: bytes) -> int | None:
        return next((page for page, k in self.keys.items() if k == key), None)

    @rule(count=st.integers(0, TOTAL + 1))
    def allocate(self, count: int) -> None:
        order = [page for kind in EVICTION_ORDER for page in self.idle[kind]]
        if count > self.free + len(order):
            with pytest.raises(OutOfPages):
                self.pool.allocate(count)
            return
        evicted = order[: max(0, count - self.free)]
        for page in evicted:
            del self.keys[page]
        self.idle = {k: [p for p in pages if p not in evicted] for k, pages in self.idle.items()}
        pages = self.pool.allocate(count)
        assert len(set(pages)) == count
        assert not set(pages) & self.owners.keys(), "a live page was handed out again"
        assert set(evicted) <= set(pages), "free pages first, then idle ones in order"
        assert not set(pages) & set(order[len(evicted) :])
        self.owners |= dict.fromkeys(pages, 1)

    @precondition(lambda self: self.owners)
    @rule(data=st.data(), key=st.sampled_from(KEYS))
    def publish(self, data: st.DataObject, key: bytes) -> None:
        page = data.draw(st.sampled_from(sorted(self.owners)))
        self.pool.publish(page, key)
        if page not in self.keys and self.page_of(key) is None:
            self.keys[page] = key

    @rule(key=st.sampled_from(KEYS))
    def share(self, key: bytes) -> None:
        page = self.page_of(key)
        if page is None:
            with pytest.raises(KeyError):
                self.pool.share(key)
            return
        assert self.pool.share(key) == page
        for pages in self.idle.values():
            if page in pages:
                pages.remove(page)
        self.owners[page] = self.owners.get(page, 0) + 1

    @precondition(lambda self: self.owners)
    @rule(data=st.data(), kind=CLASSES)
    def release(self, data: st.DataObject, kind: IdleClass) -> None:
        page = data.draw(st.sampled_from(sorted(self.owners)))
        self.pool.release(page, kind)
        self.owners[page] -= 1
        if not self.owners[page]:
            del self.owners[page]
            if page in self.keys:
                self.idle[kind].append(page)

    @rule(key=st.sampled_from(KEYS), kind=CLASSES)
    def reclassify(self, key: bytes, kind: IdleClass) -> None:
        self.pool.reclassify(key, kind)
        page = self.page_of(key)
        for pages in self.idle.values():
            if page is not None and page in pages:
                pages.remove(page)
                self.idle[kind].append(page)
                break

    @rule(page=st.integers(0, TOTAL - 1))
    def what_is_not_live_can_be_neither_released_nor_published(self, page: int) -> None:
        if page not in self.owners:
            with pytest.raises(ValueError, match=f"page {page} is not live"):
                self.pool.release(page)
            with pytest.raises(ValueError, match=f"page {page} is not live"):
                self.pool.publish(page, KEYS[0])

    @invariant()
    def counts_add_up(self) -> None:
        pool = self.pool
        assert pool.live_pages == len(self.owners)
        assert pool.idle_pages == {kind: len(pages) for kind, pages in self.idle.items()}
        assert pool.free_pages == self.free
        assert pool.live_pages + sum(pool.idle_pages.values()) + pool.free_pages == TOTAL
        assert pool.available_pages == TOTAL - len(self.owners)

    @invariant()
    def references_are_owners(self) -> None:
        assert [self.pool.references(p) for p in range(TOTAL)] == [
            self.owners.get(p, 0) for p in range(TOTAL)
        ]

    @invariant()
    def identities_are_known(self) -> None:
        idle = {page for pages in self.idle.values() for page in pages}
        for key in KEYS:
            page = self.page_of(key)
            assert self.pool.knows(key) == (page is not None)
            assert self.pool.is_idle(key) == (page in idle)


TestPool = PoolAgainstModel.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def idle_page(pool: PagePool, key: bytes, kind: IdleClass) -> int:
    (page,) = pool.allocate(1)
    pool.publish(page, key)
    pool.release(page, kind)
    return page


def test_eviction_takes_dead_then_stable_then_awaited_each_least_recent_first() -> None:
    pool = PagePool(6)
    kinds: list[IdleClass] = ["awaited", "stable", "dead", "stable", "awaited", "dead"]
    held = pool.allocate(6)
    for page, kind, key in zip(held, kinds, KEYS, strict=False):
        pool.publish(page, key)
        pool.release(page, kind)
    order = [held[i] for i in (2, 5, 1, 3, 0, 4)]
    assert [pool.allocate(1)[0] for _ in range(6)] == order


def test_a_hit_makes_a_page_the_most_recently_used_of_its_class() -> None:
    pool = PagePool(2)
    first, second = idle_page(pool, b"a", "stable"), idle_page(pool, b"b", "stable")
    pool.release(pool.share(b"a"), "stable")
    assert pool.allocate(2) == [second, first]


def test_the_first_page_with_an_identity_serves_and_the_second_is_freed() -> None:
    pool = PagePool(2)
    first, second = pool.allocate(2)
    pool.publish(first, b"a")
    pool.publish(second, b"a")
    pool.release(second)
    assert pool.free_pages == 1
    assert pool.share(b"a") == first


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="total_pages is 0"):
        PagePool(0)

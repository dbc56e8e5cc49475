from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scheduler.pages import EVICTION_ORDER, IdleClass, OutOfPages, PagePool, Run
from tests.scheduler.pool_checks import check_pool, references

TOTAL = 7
CLASSES = st.sampled_from(EVICTION_ORDER)
PATHS = st.lists(st.integers(0, 1), min_size=1, max_size=5)
"""A chain of pages: each page's tokens are told by one bit, so that chains share and branch."""


def keys_of(path: list[int]) -> list[bytes]:
    return [bytes(path[: end + 1]) for end in range(len(path))]


class Holder:
    """A sequence: its chain, its pages, and how many of them it has published."""

    def __init__(
        self, keys: list[bytes], pages: list[int], published: int, run: Run | None
    ) -> None:
        self.keys, self.pages, self.published, self.run = keys, pages, published, run


class PoolUnderSequences(RuleBasedStateMachine):
    """Sequences that come, publish and go; `written` is what each page holds."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(TOTAL, doubling_pages=2)
        self.holders: list[Holder] = []
        self.written: dict[int, bytes] = {}

    @property
    def classes(self) -> dict[bytes, IdleClass]:
        """Of the idle pages, by identity."""
        known = self.pool._run_of.items()
        return {key: EVICTION_ORDER[run.kind] for key, run in known if not run.references}

    @property
    def owners(self) -> list[int]:
        return [page for holder in self.holders for page in holder.pages]

    @rule(path=PATHS)
    def come(self, path: list[int]) -> None:
        keys = keys_of(path)
        found = self.pool.match(keys)
        shared = found.pages()
        assert [self.written[page] for page in shared] == keys[: found.end], "another history"
        missing = len(keys) - found.end
        if missing + self.pool.count_idle(found) > self.pool.available_pages:
            counts = (self.pool.free_pages, self.pool.idle_pages)
            with pytest.raises(OutOfPages):
                self.pool.allocate(self.pool.available_pages + 1)
            assert counts == (self.pool.free_pages, self.pool.idle_pages)
            return
        idle = self.pool.count_idle(found)
        before = self.pool.live_pages
        run = self.pool.hold(found)
        assert self.pool.live_pages == before + idle
        new = self.pool.allocate(missing)
        assert len(set(new)) == missing and not set(new) & set(self.owners), "a live page"
        assert not set(new) & set(shared)
        for page in new:
            self.written.pop(page, None)
        self.holders.append(Holder(keys, shared + new, found.end, run))

    @precondition(lambda self: any(h.published < len(h.keys) for h in self.holders))
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from([h for h in self.holders if h.published < len(h.keys)]))
        place = holder.published
        page, key = holder.pages[place], holder.keys[place]
        other = [
            h.pages[place]
            for h in self.holders
            if h.published > place and h.keys[place] == key and h is not holder
        ]
        run = self.pool.publish(page, key, holder.run)
        assert (run is None) == bool(other), "refused exactly while another live page serves"
        self.written[page] = key
        if run is not None:
            holder.published, holder.run = place + 1, run
            assert self.pool.match(holder.keys[: place + 1]).pages() == holder.pages[: place + 1]

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), kind=CLASSES)
    def go(self, data: st.DataObject, kind: IdleClass) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        self.holders.remove(holder)
        self.pool.release(holder.run, holder.pages[holder.published :], kind)

    @rule(path=PATHS, first=st.integers(0, 5), kind=CLASSES, was=st.none() | CLASSES)
    def reclassify(
        self, path: list[int], first: int, kind: IdleClass, was: IdleClass | None
    ) -> None:
        keys = keys_of(path)
        classes = self.classes
        self.pool.reclassify(keys, kind, first=first, was=was)
        for key in keys[first:]:
            if key in classes and was in (None, classes[key]):
                classes[key] = kind
        assert self.classes == classes

    @rule(page=st.integers(0, TOTAL - 1))
    def what_is_not_live_can_be_neither_released_nor_published(self, page: int) -> None:
        if page not in self.owners:
            with pytest.raises(ValueError, match="not all live"):
                self.pool.release(None, [page])
            with pytest.raises(ValueError, match=f"page {page} is not live"):
                self.pool.publish(page, b"x")

    @invariant()
    def references_are_owners(self) -> None:
        owners = self.owners
        assert [references(self.pool, p) for p in range(TOTAL)] == [
            owners.count(p) for p in range(TOTAL)
        ]
        assert self.pool.available_pages == TOTAL - len(set(owners))

    @invariant()
    def insides_agree(self) -> None:
        check_pool(self.pool)


TestPool = PoolUnderSequences.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def computed(pool: PagePool, name: bytes, pages: int) -> tuple[list[int], Run]:
    """Computes a chain of pages and holds it."""
    held = pool.allocate(pages)
    run = None
    for page, key in zip(held, keys_in(name, pages), strict=True):
        run = pool.publish(page, key, run)
    assert run is not None
    return held, run


def chain(pool: PagePool, name: bytes, pages: int, kind: IdleClass = "stable") -> list[int]:
    """Computes a chain of pages and lets go of it."""
    held, run = computed(pool, name, pages)
    pool.release(run, idle_class=kind)
    return held


def use(pool: PagePool, keys: list[bytes]) -> None:
    """Finds a prefix and lets go of it again."""
    pool.release(pool.hold(pool.match(keys)))


def keys_in(name: bytes, pages: int) -> list[bytes]:
    return [name + bytes([place]) for place in range(pages)]


def evicted(pool: PagePool, count: int) -> list[int]:
    """The pages that go, in their order."""
    return [pool.allocate(1)[0] for _ in range(count)]


def test_eviction_takes_dead_then_stable_then_awaited_each_least_recent_first() -> None:
    pool = PagePool(6)
    kinds: list[IdleClass] = ["awaited", "stable", "dead", "stable", "awaited", "dead"]
    held = [chain(pool, bytes([place]), 1, kind)[0] for place, kind in enumerate(kinds)]
    assert evicted(pool, 6) == [held[i] for i in (2, 5, 1, 3, 0, 4)]
    assert pool.evictions == {"dead": 2, "stable": 2, "awaited": 2}


def test_a_hit_makes_a_page_the_most_recently_used_of_its_class() -> None:
    pool = PagePool(2)
    (first,), (second,) = chain(pool, b"a", 1), chain(pool, b"b", 1)
    use(pool, [b"a\0"])
    assert evicted(pool, 2) == [second, first]


def test_the_older_conversation_goes_first_from_its_end() -> None:
    pool = PagePool(7)
    old, new = chain(pool, b"a", 3), chain(pool, b"b", 4)
    assert evicted(pool, 7) == [*reversed(old), *reversed(new)]


def test_no_page_goes_before_those_that_follow_it_whatever_their_classes() -> None:
    pool = PagePool(4)
    held = chain(pool, b"a", 4, "awaited")
    for place, kind in ((0, "dead"), (1, "stable"), (2, "dead")):
        pool.reclassify(keys_in(b"a", 4)[: place + 1], kind, first=place)  # type: ignore[arg-type]
    assert evicted(pool, 4) == [*reversed(held)]
    assert pool.evictions == {"dead": 2, "stable": 1, "awaited": 1}


def test_a_turn_without_pages_does_not_turn_time_back() -> None:
    """Its choice was preempted, so the span that it reports stands behind all that is cached."""
    pool = PagePool(3)
    (old,) = chain(pool, b"a", 1)
    pool.reclassify([], "stable", first=20)
    young = chain(pool, b"b", 2)
    assert evicted(pool, 3) == [old, *reversed(young)]


def test_a_place_where_conversations_branch_outlives_the_branch_that_ages() -> None:
    pool = PagePool(4)
    trunk, old = chain(pool, b"a", 2)
    (lone,) = chain(pool, b"b", 1)
    use(pool, keys_in(b"a", 1))  # another conversation, whose last page is not full
    assert pool.free_pages == 1
    assert evicted(pool, 4)[1:] == [old, lone, trunk]


def test_what_costs_twice_stays_one_turnover_longer() -> None:
    """A chain of 8 pages ends where a page costs twice; then a stream of short ones."""
    pool = PagePool(12, doubling_pages=4)
    dear = chain(pool, b"dear", 8)
    cheap = [chain(pool, bytes([n]), 1)[0] for n in range(4)]
    gone = [chain(pool, bytes([n]), 1)[0] for n in range(4, 20)]
    assert gone[:4] == cheap, "younger than the dear chain, but worth less"
    assert gone.index(dear[-1]) == 12, "yet it does not stay for ever"


def test_with_equal_worth_it_is_plain_lru() -> None:
    pool = PagePool(12)
    first = chain(pool, b"long", 8)
    for n in range(4):
        chain(pool, bytes([n]), 1)
    assert evicted(pool, 8) == [*reversed(first)]


def test_while_one_page_serves_an_identity_another_is_refused_it() -> None:
    pool = PagePool(2)
    first, second = pool.allocate(2)
    assert pool.publish(first, b"a")
    assert pool.publish(second, b"a") is None
    pool.release(None, [second])
    assert pool.free_pages == 1
    assert pool.match([b"a"]).pages() == [first]


def test_a_live_page_takes_over_the_identity_of_an_idle_one_and_what_follows_it() -> None:
    pool = PagePool(4)
    old, after = chain(pool, b"a", 2)
    (page,) = pool.allocate(1)
    keys = keys_in(b"a", 2)
    run = pool.publish(page, keys[0])
    assert pool.match(keys).pages() == [page, after]
    assert pool.free_pages == 2 and pool.idle_pages["stable"] == 1
    pool.release(run)
    assert evicted(pool, 4)[2:] == [after, page]
    assert old != page


def test_a_page_keeps_its_identity() -> None:
    pool = PagePool(1)
    (page,) = pool.allocate(1)
    run = pool.publish(page, b"a")
    with pytest.raises(ValueError, match="page 0 is not live, or has an identity"):
        pool.publish(page, b"b", run)
    assert not pool.match([b"b"]).end


def test_a_run_goes_on_over_turns_and_is_split_where_prompts_part() -> None:
    pool = PagePool(8)
    keys = keys_in(b"a", 6)
    chain(pool, b"a", 3)
    found = pool.match(keys)
    run, first = pool.hold(found), found.run
    for page, key in zip(pool.allocate(3), keys[3:], strict=True):
        run = pool.publish(page, key, run)
    assert run is first and run is not None and run.end == 6, "nobody else holds it: one run"
    other = pool.hold(pool.match(keys, 2))
    assert other is run.before and (run.start, run.references) == (2, 1)
    (page,) = pool.allocate(1)
    branch = pool.publish(page, b"branch", other)
    assert branch is not other, "the run before is shared"
    check_pool(pool)
    pool.release(branch)
    pool.release(run)
    assert pool.idle_of("stable") == 7
    check_pool(pool)


def test_what_is_released_twice_is_an_error() -> None:
    pool = PagePool(2)
    _, run = computed(pool, b"a", 2)
    pool.release(run)
    with pytest.raises(ValueError, match="not all live"):
        pool.release(run)
    check_pool(pool)


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="total_pages is 0"):
        PagePool(0)

"""deploy.ray.affinity: conversations stay where they were, unless that costs more than it saves."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from deploy.ray.affinity import AffinityTable, Block


def conversation(text: str, size_bytes: int = 300) -> list[Block]:
    """A block per letter; a block's key tells all that comes before it, as a chain's does."""
    return [Block(text[: end + 1].encode(), size_bytes) for end in range(len(text))]


def test_the_longest_known_beginning_wins() -> None:
    table = AffinityTable()
    table.learn(conversation("ab"), "one")
    table.learn(conversation("abcd"), "two")
    loads = {"one": 0, "two": 1, "three": 0}
    assert table.rank(conversation("abcdef"), loads) == ["two", "three", "one"]
    assert table.longest(conversation("abx"), loads) == (600, {"one", "two"})
    assert table.rank(conversation("abx"), loads)[0] == "one"


def test_without_a_known_beginning_the_least_loaded_wins_and_then_the_emptiest() -> None:
    table = AffinityTable()
    table.learn(conversation("abc"), "one")
    table.learn(conversation("x"), "two")
    assert table.rank(conversation("q"), {"one": 0, "two": 0, "three": 1}) == [
        "two",
        "one",
        "three",
    ]
    assert table.rank([], {"one": 0, "two": 3}) == ["one", "two"]
    assert table.rank(conversation("abc"), {}) == []


def test_a_short_beginning_is_not_worth_a_queue() -> None:
    table = AffinityTable(least_prefix_bytes=256)
    table.learn(conversation("ab", 100), "one")
    assert table.rank(conversation("abc", 100), {"one": 1, "two": 0})[0] == "two"
    table.learn(conversation("abc", 100), "one")
    assert table.rank(conversation("abc", 100), {"one": 1, "two": 0})[0] == "one"


def test_a_busy_favourite_loses_and_shares_what_it_knew() -> None:
    table = AffinityTable(imbalance_requests=4)
    table.learn(conversation("ab"), "one")
    assert table.rank(conversation("ab"), {"one": 4, "two": 0})[0] == "one"
    assert table.rank(conversation("ab"), {"one": 5, "two": 0}) == ["two", "one"]
    table.learn(conversation("ab"), "two")
    assert table.rank(conversation("ab"), {"one": 3, "two": 2})[0] == "two"


def test_a_replica_that_left_is_forgotten() -> None:
    table = AffinityTable()
    table.learn(conversation("abc"), "one")
    table.learn(conversation("ab"), "two")
    table.keep(["two", "new"])
    assert len(table) == 2
    assert table.held_blocks("one") == 0
    assert table.longest(conversation("abc"), ["one", "two"]) == (600, {"two"})
    table.forget("two")
    assert len(table) == 0


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        ({"capacity_blocks": 0}, "capacity_blocks is 0"),
        ({"least_prefix_bytes": 0}, "least_prefix_bytes is 0"),
        ({"imbalance_requests": -1}, "imbalance_requests is -1"),
    ],
)
def test_a_bad_bound_is_named(bounds: dict[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        AffinityTable(**bounds)


CONVERSATIONS = st.text("ab", max_size=7).map(conversation)
REPLICAS = st.sampled_from(["one", "two", "three"])
CAPACITY = 6


class AnyHistory(RuleBasedStateMachine):
    """A table beside what was really sent."""

    def __init__(self) -> None:
        super().__init__()
        self.table = AffinityTable(CAPACITY)
        self.sent: dict[str, set[bytes]] = {"one": set(), "two": set(), "three": set()}

    @rule(blocks=CONVERSATIONS, replica=REPLICAS)
    def learn(self, blocks: Sequence[Block], replica: str) -> None:
        self.table.learn(blocks, replica)
        kept = blocks[:CAPACITY]
        self.sent[replica] |= {block.key for block in kept}
        known, _ = self.table.longest(kept, [replica])
        assert known == sum(block.size_bytes for block in kept)

    @rule(replica=REPLICAS)
    def forget(self, replica: str) -> None:
        self.table.forget(replica)
        self.sent[replica].clear()

    @rule(replicas=st.sets(REPLICAS))
    def keep(self, replicas: set[str]) -> None:
        self.table.keep(replicas)
        for replica in self.sent.keys() - replicas:
            self.sent[replica].clear()

    @rule(blocks=CONVERSATIONS, loads=st.dictionaries(REPLICAS, st.integers(0, 20)))
    def rank(self, blocks: Sequence[Block], loads: dict[str, int]) -> None:
        ranked = self.table.rank(blocks, loads)
        assert sorted(ranked) == sorted(loads)
        if loads:
            assert loads[ranked[0]] <= min(loads.values()) + 8
        _, knowing = self.table.longest(blocks, loads)
        for replica in knowing:
            assert blocks[0].key in self.sent[replica]

    @invariant()
    def bounded_and_without_gaps(self) -> None:
        assert len(self.table) <= CAPACITY
        remembered = self.table._replicas
        for replica in self.sent:
            own = {key for key, known in remembered.items() if replica in known}
            assert own <= self.sent[replica]
            assert self.table.held_blocks(replica) == len(own)
            assert all(key[:-1] in own for key in own if len(key) > 1)


TestAnyHistory = AnyHistory.TestCase


@given(st.lists(CONVERSATIONS, max_size=20), CONVERSATIONS)
def test_a_conversation_that_goes_on_goes_back(
    others: list[list[Block]], blocks: list[Block]
) -> None:
    table = AffinityTable(least_prefix_bytes=1)
    loads = {"one": 1, "two": 1, "three": 1}
    for other in others:
        table.learn(other, table.rank(other, loads)[0])
    first = table.rank(blocks, loads)[0]
    table.learn(blocks, first)
    longer = [*blocks, Block(b"another message", 10)]
    if blocks:
        assert first in table.longest(longer, loads)[1]
        assert table.rank(longer, loads)[0] in table.longest(longer, loads)[1]

"""api.conversation.reasoning_store: bounds that always hold, what counts as the same message."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from api.chat.messages import ToolCall, Written
from api.conversation.reasoning_store import (
    OVERHEAD_BYTES,
    ReasoningStore,
    StoredTurn,
    digest_of_rest,
    digest_of_text,
)

LIMIT_BYTES = 5 * OVERHEAD_BYTES
AGE_S = 100.0
OWNERS = ("a", "b", "a\nb")
CALL_IDS = ("call_0", "call_1", "call_2", "call_3")


def turn(*token_ids: int) -> StoredTurn:
    written = Written(tuple(token_ids), tuple(token_ids))
    return StoredTurn(written, b"reasoning", b"rest", len(token_ids))


class Bounds(RuleBasedStateMachine):
    """Puts, gets and time, against a model that remembers everything with its time."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.store = ReasoningStore(LIMIT_BYTES, AGE_S, clock=lambda: self.now_s)
        self.latest: dict[tuple[str, str], tuple[StoredTurn, float]] = {}
        """(owner, call id) -> the last turn put there, and when it was put or found."""
        self.number = 0

    @rule(
        owner=st.sampled_from(OWNERS),
        call_ids=st.lists(st.sampled_from(CALL_IDS), min_size=1, max_size=3, unique=True),
        tokens=st.sampled_from([0, 1, 100, 600]),
    )
    def put(self, owner: str, call_ids: list[str], tokens: int) -> None:
        self.number += 1
        stored = turn(*[self.number] * tokens)
        self.store.put(owner, call_ids, stored)
        if 8 * tokens + OVERHEAD_BYTES < LIMIT_BYTES:
            for call_id in call_ids:
                self.latest[owner, call_id] = (stored, self.now_s)

    @rule(owner=st.sampled_from(OWNERS), call_id=st.sampled_from(CALL_IDS))
    def get(self, owner: str, call_id: str) -> None:
        found = self.store.get(owner, [call_id])
        if found is None:
            return
        stored, at_s = self.latest[owner, call_id]
        assert found == stored, "another owner's turn, or an older one"
        assert self.now_s < at_s + AGE_S, "expired"
        for key, (other, _) in self.latest.items():
            if key[0] == owner and other is stored:
                self.latest[key] = (stored, self.now_s)

    @precondition(lambda self: self.latest)
    @rule(seconds=st.sampled_from([0.0, 1.0, AGE_S / 2, AGE_S]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @invariant()
    def within_bounds(self) -> None:
        counts = self.store.counts
        assert 0 <= counts.bytes <= LIMIT_BYTES
        assert counts.turns * OVERHEAD_BYTES <= counts.bytes


Bounds.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestBounds = Bounds.TestCase


def test_a_turn_is_found_by_all_its_calls_and_by_no_others() -> None:
    store = ReasoningStore(2**20, AGE_S)
    store.put("a", ["x", "y"], turn(1, 2))
    store.put("a", ["z"], turn(3))
    assert store.get("a", ["x"]) == store.get("a", ["y", "x"]) == turn(1, 2)
    assert store.get("a", ["x", "z"]) is None, "two turns"
    assert store.get("a", ["x", "unknown"]) is None
    assert store.get("a", []) is None
    assert store.get("b", ["x"]) is None


def test_the_least_recently_used_goes_first() -> None:
    store = ReasoningStore(3 * OVERHEAD_BYTES, AGE_S)
    store.put("", ["first"], turn(1))
    store.put("", ["second"], turn(2))
    assert store.get("", ["first"]) is not None
    store.put("", ["third"], turn(3))
    assert [store.get("", [name]) is None for name in ("first", "second", "third")] == [
        False,
        True,
        False,
    ]
    assert store.counts.evicted_turns == 1


def test_a_turn_larger_than_the_bound_displaces_nothing() -> None:
    store = ReasoningStore(2 * OVERHEAD_BYTES, AGE_S)
    store.put("", ["small"], turn(1))
    store.put("", ["huge"], turn(*range(OVERHEAD_BYTES)))
    assert store.get("", ["small"]) == turn(1) and store.get("", ["huge"]) is None


CALL = ToolCall("id", "f", '{"a": 1.0, "b": [true, {"c": "é"}]}')


@pytest.mark.parametrize(
    ("content", "changes", "same"),
    [
        ("Hi", {}, True),
        (" Hi\n", {}, True),
        ("Hi", {"arguments": '{"b":[true,{"c":"\\u00e9"}],"a":1}'}, True),
        ("Hi", {"arguments": '{"a": 1, "b": [1, {"c": "é"}]}'}, False),
        ("Hi", {"arguments": '{"a": "1", "b": [true, {"c": "é"}]}'}, False),
        ("Hi", {"name": "g"}, False),
        ("Hi", {"id": "other"}, False),
        ("Ha", {}, False),
    ],
)
def test_calls_count_by_what_they_mean(content: str, changes: Any, same: bool) -> None:
    fields = {"id": CALL.id, "name": CALL.name, "arguments": CALL.arguments}
    digest = digest_of_rest(content, [ToolCall(**fields | changes)])
    assert (digest == digest_of_rest("Hi", [CALL])) is same


def test_the_order_of_calls_counts() -> None:
    other = ToolCall("id2", "f", "{}")
    assert digest_of_rest("", [CALL, other]) != digest_of_rest("", [other, CALL])


def test_white_space_around_reasoning_does_not_count() -> None:
    assert digest_of_text("\nhm ") == digest_of_text("hm") != digest_of_text("h m")

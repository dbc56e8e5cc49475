from __future__ import annotations

import pytest

from loadtest.door import Door, Wait
from scheduler.admission import Backlog, Limits, Sizes

LIMITS = Limits(max_model_len=10_000, max_queued_requests=100, max_queued_tokens=1000)


def waiting(tokens: int) -> Backlog:
    return Backlog(
        waiting=1,
        backlog_tokens=tokens,
        tenant_backlog_tokens={"": tokens},
        drain_tokens_per_s=200.0,
    )


def test_what_was_let_in_since_the_snapshot_counts() -> None:
    door = Door(LIMITS)
    asked = [door.decide(Sizes(prompt_tokens=400), 0.0) for _ in range(4)]
    assert [one is None for one in asked] == [True, True, False, False]
    assert door.load.backlog_tokens == 800


def test_what_was_found_in_the_cache_counts_no_more() -> None:
    door = Door(LIMITS)
    assert door.decide(Sizes(prompt_tokens=900, tenant="a"), 0.0) is None
    assert door.decide(Sizes(prompt_tokens=900, tenant="a"), 0.0) is not None
    door.found("a", 800)
    assert door.load.tenant_backlog_tokens == {"a": 100}
    assert door.decide(Sizes(prompt_tokens=700, tenant="a"), 0.0) is None


def test_a_refused_request_is_followed_until_it_would_be_let_in() -> None:
    door = Door(LIMITS)
    door.update(waiting(1000), 0.0)
    refusal = door.decide(Sizes(prompt_tokens=400), 1.0)
    assert refusal is not None and refusal.code == "backlog_full"
    assert refusal.retry_after_s == pytest.approx(3.0), "until 800 are left with it"
    for now_s, tokens in ((2.0, 800), (3.5, 600), (4.0, 400)):
        door.update(waiting(tokens), now_s)
    assert door.waits == [Wait(told_s=3.0, real_s=3.0)]


def test_what_never_fits_is_not_waited_for() -> None:
    door = Door(LIMITS)
    refusal = door.decide(Sizes(prompt_tokens=20_000), 0.0)
    assert refusal is not None and refusal.status == 400
    door.update(Backlog(), 9.0)
    assert door.waits == []


def test_snapshots_come_at_their_interval() -> None:
    door = Door(LIMITS, interval_s=0.25)
    assert door.is_due(0.0)
    door.update(Backlog(), 1.0)
    assert not door.is_due(1.2)
    assert door.is_due(1.25)

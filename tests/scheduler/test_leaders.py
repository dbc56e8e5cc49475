"""Requests that share an uncached prefix wait for the first one to compute it."""

from __future__ import annotations

from scheduler.request import Sampling
from tests.scheduler.test_scheduler import NEVER_ENDS, PROMPT, Replica, spans

LONG = PROMPT * 2
"""Five full pages."""
TWO = Sampling(max_tokens=2, ignore_eos=True)


def test_the_shared_part_is_computed_once() -> None:
    replica = Replica(max_num_batched_tokens=8)
    replica.submit("a", LONG, TWO)
    replica.submit("b", [*LONG[:12], 2, 2, 2], TWO)
    assert spans(replica.step()[0]) == [(0, 8)]
    assert spans(replica.step()[0]) == [(8, 8)], "b waits for the third page, not for a's end"
    assert spans(replica.step()[0]) == [(16, 4), (12, 3)]
    replica.finish()
    assert replica.runner.computed_tokens == 20 + 3 + 2


def test_others_pass_those_that_wait() -> None:
    replica = Replica(max_num_batched_tokens=6)
    replica.submit("a", PROMPT, TWO)
    replica.submit("b", PROMPT, TWO)
    replica.submit("c", [2, 3], TWO)
    replica.step()
    assert len(replica.scheduler.waiting) == 2
    assert spans(replica.step()[0]) == [(6, 4), (0, 2)]
    assert replica.running() == {"a", "c"}


def test_who_waited_goes_on_when_the_first_is_aborted() -> None:
    replica = Replica(max_num_batched_tokens=4)
    replica.submit("a", LONG, NEVER_ENDS)
    replica.submit("b", LONG, TWO)
    replica.submit("c", LONG, TWO)
    replica.step()
    replica.scheduler.abort("a")
    assert spans(replica.step()[0]) == [(4, 4)], "one of them goes on where a had come"
    assert {n.request_id for n in replica.finish() if n.finish} == {"b", "c"}
    assert replica.runner.computed_tokens == 20 + 2 * 1 + 4


def test_who_waited_goes_on_when_the_first_is_preempted() -> None:
    replica = Replica(max_num_batched_tokens=4, total_pages=6, max_model_len=24)
    replica.submit("dear", [2, 2, 2], NEVER_ENDS, priority=0)
    replica.step()
    replica.submit("a", LONG, TWO, priority=2)
    replica.submit("b", LONG, TWO, priority=2)
    ended = [n.request_id for n in replica.finish() if n.finish]
    assert replica.scheduler.preemptions > 0
    assert sorted(ended) == ["a", "b", "dear"]


def test_nobody_waits_for_a_lower_priority() -> None:
    replica = Replica(max_num_batched_tokens=4)
    replica.submit("low", LONG, TWO, priority=5)
    replica.step()
    replica.submit("high", LONG, TWO, priority=0)
    assert spans(replica.step()[0]) == [(4, 4)], "it goes on where low had come, before low"
    assert replica.running() == {"low", "high"}
    assert len([n for n in replica.finish() if n.finish]) == 2


def test_a_waiting_follower_can_be_aborted() -> None:
    replica = Replica(max_num_batched_tokens=4)
    replica.submit("a", LONG, TWO)
    replica.submit("b", LONG, TWO)
    replica.step()
    assert [n.finish for n in replica.scheduler.abort("b")] == ["abort"]
    assert len(replica.scheduler.waiting) == 0
    assert {n.request_id for n in replica.finish()} == {"a"}


def test_tenants_do_not_wait_for_each_other() -> None:
    replica = Replica(max_num_batched_tokens=24)
    replica.submit("a", LONG, TWO, tenant="one")
    replica.submit("b", LONG, TWO, tenant="two")
    assert spans(replica.step()[0]) == [(0, 20), (0, 4)]

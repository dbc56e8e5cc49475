"""The life of a turn's pages: dead, awaited for a bounded time and share, stable again."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler.request import Sampling
from tests.scheduler.test_scheduler import PROMPT, Replica

ONE = Sampling(max_tokens=1, ignore_eos=True)


def ended(replica: Replica, name: str, prompt: list[int], why: Any, **how: Any) -> None:
    replica.submit(name, prompt, ONE)
    replica.finish()
    replica.scheduler.turn_ended(name, 0, why, how.pop("flip", None), **how)


def test_an_awaited_turn_is_protected_for_its_time_only() -> None:
    replica = Replica(awaited_s=10.0, awaited_share=1.0)
    ended(replica, "a", PROMPT, "tool_calls", now_s=100.0)
    replica.scheduler.plan(now_s=109.9)
    assert replica.pool.idle_pages == {"dead": 0, "stable": 0, "awaited": 2}
    replica.scheduler.plan(now_s=110.0)
    assert replica.pool.idle_pages == {"dead": 0, "stable": 2, "awaited": 0}


def test_awaited_turns_have_a_share_and_the_oldest_gives_way() -> None:
    replica = Replica(awaited_s=10.0, awaited_share=0.25)  # 4 of 16 pages
    ended(replica, "a", PROMPT, "tool_calls")
    ended(replica, "b", [2] * 9, "tool_calls")
    assert replica.pool.idle_of("awaited") == 4
    ended(replica, "c", [3] * 5, "tool_calls")
    assert replica.pool.idle_pages == {"dead": 0, "stable": 2, "awaited": 3}
    ended(replica, "d", [4] * 21, "tool_calls")
    assert replica.pool.idle_of("awaited") == 0, "a turn beyond the share is not protected at all"


def test_a_turn_that_came_back_and_was_answered_is_not_made_stable_by_an_old_deadline() -> None:
    replica = Replica(awaited_s=10.0, awaited_share=1.0)
    ended(replica, "a", PROMPT, "tool_calls", now_s=0.0)
    ended(replica, "b", [*PROMPT, 2, 2, 2], "answer", flip=0, now_s=5.0)
    assert replica.pool.idle_pages == {"dead": 3, "stable": 0, "awaited": 0}
    replica.scheduler.plan(now_s=50.0)
    assert replica.pool.idle_pages == {"dead": 3, "stable": 0, "awaited": 0}


def test_a_turn_that_came_back_is_protected_from_its_second_end_on() -> None:
    replica = Replica(awaited_s=10.0, awaited_share=1.0)
    ended(replica, "a", PROMPT, "tool_calls", now_s=0.0)
    ended(replica, "b", [*PROMPT, 2, 2, 2], "tool_calls", now_s=8.0)
    replica.scheduler.plan(now_s=12.0)
    assert replica.pool.idle_of("awaited") == 3
    replica.scheduler.plan(now_s=18.0)
    assert replica.pool.idle_of("awaited") == 0


def test_live_pages_of_an_ended_turn_stay_live() -> None:
    replica = Replica()
    replica.submit("a", PROMPT, ONE)
    replica.submit("b", [*PROMPT, 3, 3])
    while "a" in replica.scheduler._requests:
        replica.step()
    replica.step()
    live = replica.pool.live_pages
    replica.scheduler.turn_ended("a", 0, "answer", 0)
    assert replica.pool.live_pages == live


@pytest.mark.parametrize("why", ["length", "aborted"])
def test_other_ends_leave_pages_stable(why: Any) -> None:
    replica = Replica()
    ended(replica, "a", PROMPT, why, flip=0)
    assert replica.pool.idle_pages == {"dead": 0, "stable": 2, "awaited": 0}


def test_an_unknown_turn_and_too_many_remembered_ones_are_ignored() -> None:
    replica = Replica(max_num_seqs=1)  # remembers four
    for name in "abcde":
        replica.submit(name, PROMPT, ONE)
    replica.finish()
    replica.scheduler.turn_ended("a", 0, "answer", 0)
    replica.scheduler.turn_ended("nobody", 0, "answer", 0)
    assert replica.pool.idle_pages["dead"] == 0
    replica.scheduler.turn_ended("b", 0, "answer", 0)
    assert replica.pool.idle_pages["dead"] == 2


def test_cached_tokens_grow_in_a_tool_loop_and_end_at_the_flip_point_after_it() -> None:
    """Three steps with reasoning sent back, then a new user message that drops it."""
    replica = Replica(total_pages=64, max_model_len=200)
    turn = [5] * 21  # system, tools, user message, the opener
    flip, cached = len(turn), []
    for step in range(3):
        sampling = Sampling(max_tokens=9, ignore_eos=True)
        cached.append(replica.submit(f"s{step}", turn, sampling))
        answer = [token for news in replica.finish() for token in news.token_ids]
        turn = [*turn, *answer]
        replica.scheduler.turn_ended(f"s{step}", 0, "tool_calls" if step < 2 else "answer", flip)
        if step < 2:
            turn = [*turn, 2, 3, 2, 3, step + 2]  # the tool's result
    assert cached == [0, 28, 40], "all but the last, unfinished page of what was there before"
    dropped = [5] * 20 + [6, 2, 3, 2, 3]
    assert replica.submit("next", dropped, ONE) == flip // 4 * 4


# ---------------------------------------------------------------- a turn whose tools have answered


def test_what_goes_on_with_an_awaited_turn_passes_its_tenants_new_turns() -> None:
    replica = Replica(max_num_seqs=1)
    ended(replica, "a", PROMPT, "tool_calls")
    replica.submit("running", [2] * 5, Sampling(max_tokens=1, ignore_eos=True))
    replica.submit("new", [3] * 5)
    replica.submit("prefix only", PROMPT[:5])
    replica.submit("next step", [*PROMPT, 4, 4])
    replica.step()
    replica.step()
    assert replica.running() == {"next step"}


def test_what_goes_on_does_not_pass_another_tenants_turn() -> None:
    replica = Replica(max_num_seqs=1)
    replica.submit("a", PROMPT, ONE, tenant="busy")
    replica.finish()
    replica.scheduler.turn_ended("a", 0, "tool_calls", None)
    replica.submit("calm", [3] * 5, tenant="calm")
    replica.submit("next step", [*PROMPT, 4, 4], tenant="busy")
    replica.step()
    assert replica.running() == {"calm"}


def test_a_new_turn_leaves_awaited_pages_alone_while_anything_runs() -> None:
    replica = Replica(awaited_share=1.0)  # 16 pages
    ended(replica, "a", [1] * 33, "tool_calls")
    assert replica.pool.idle_of("awaited") == 8
    replica.submit("short", [2] * 9, Sampling(max_tokens=2, ignore_eos=True))
    replica.submit("long", [3] * 30)
    replica.step()
    assert replica.running() == {"short"}, "8 pages would have to go"
    assert replica.pool.idle_of("awaited") == 8
    replica.step()
    replica.step()
    assert replica.running() == {"long"}, "nothing else runs: it may take them"


def test_another_tenants_turn_goes_on_while_a_new_one_finds_no_room() -> None:
    replica = Replica(awaited_share=1.0)  # 16 pages
    replica.submit("a", [1] * 33, ONE, tenant="busy")
    replica.finish()
    replica.scheduler.turn_ended("a", 0, "tool_calls", None)
    replica.submit("short", [2] * 9, Sampling(max_tokens=3, ignore_eos=True), tenant="calm")
    replica.step()
    replica.submit("long", [3] * 30, tenant="new")
    replica.step()
    assert replica.running() == {"short"}, "the pages of the turn that waits are not for it"
    replica.submit("next step", [*[1] * 33, 4, 4], tenant="busy")
    replica.step()
    assert "next step" in replica.running()
    replica.finish()
    assert not replica.scheduler.waiting


def test_a_preempted_request_comes_back_before_new_ones() -> None:
    replica = Replica(total_pages=10, max_model_len=32, max_num_seqs=2)
    replica.submit("first", [2] * 15)
    replica.submit("second", [3] * 15)
    replica.step()
    replica.submit("third", [4] * 3)
    while not replica.scheduler.preemptions:
        replica.step()
    assert replica.running() == {"first"}
    assert replica.scheduler.waiting.head().request_id == "second"  # type: ignore[union-attr]

"""Dropped forms are computed in idle steps, and yield to everything else."""

from __future__ import annotations

from scheduler.request import Sampling
from scheduler.scheduler import Scheduler
from tests.scheduler.fake_predictor import LinearPredictor
from tests.scheduler.fake_runner import FakeRunner
from tests.scheduler.test_scheduler import NEVER_ENDS, PROMPT, Replica, spans

ONE = Sampling(max_tokens=1, ignore_eos=True)
FORM = [5, 6, 7, 8, *[2] * 9]
"""Three full pages, the first of which PROMPT has too."""


def answered(replica: Replica, form: list[int] = FORM, name: str = "a") -> None:
    replica.submit(name, PROMPT, ONE)
    replica.finish()
    replica.scheduler.turn_ended(name, 0, "answer", 5, next_prefix=form)


def timed(target_s: float) -> Replica:
    replica = Replica(inter_token_target_s=target_s, prefill_floor_tokens=1)
    replica.scheduler = Scheduler(replica.scheduler.config, LinearPredictor())
    replica.pool = replica.scheduler.pool
    replica.runner = FakeRunner(replica.scheduler.config, replica.pool)
    return replica


def test_the_next_message_finds_its_prefix() -> None:
    replica = Replica()
    answered(replica)
    plan, news = replica.step()
    assert spans(plan) == [(4, 8)] and plan.rows[0].sample == "none" and not news
    replica.finish()
    assert replica.scheduler.pre_warmer.computed_tokens == 8
    assert replica.pool.live_pages == 0 and not replica.runner.slots
    assert replica.submit("b", [*FORM, 3, 3, 3]) == 12


def test_hits_count_what_was_computed_once() -> None:
    replica = Replica()
    answered(replica)
    warmer = replica.scheduler.pre_warmer
    replica.finish()
    replica.submit("other", [*FORM[:4], 9, 9, 9, 9, 9], ONE)
    replica.finish()
    assert warmer.hit_tokens == 0, "the page it found was there before"
    replica.submit("branch", [*FORM[:8], 9, 9, 9, 9, 9], ONE)
    replica.finish()
    assert (warmer.computed_tokens, warmer.hit_tokens) == (8, 4)
    replica.submit("b", [*FORM, 3, 3, 3], ONE)
    replica.finish()
    assert warmer.hit_tokens == 4, "a form that was found is not counted again"


def test_without_it_only_the_part_before_the_flip_is_found() -> None:
    replica = Replica(max_pre_warms=0)
    answered(replica)
    assert not replica.scheduler.has_work
    assert replica.submit("b", [*FORM, 3, 3, 3]) == 4


def test_a_real_request_takes_the_step_and_what_was_done_is_kept() -> None:
    replica = Replica(max_num_batched_tokens=4)
    answered(replica)
    assert spans(replica.step()[0]) == [(4, 4)]
    assert replica.pool.live_pages == 3
    replica.submit("b", [3, 3, 3], NEVER_ENDS)
    plan, _ = replica.step()
    assert spans(plan) == [(0, 3)], "nothing of the pre-warm in a step that somebody needs"
    assert replica.pool.live_pages == 1
    assert len(replica.scheduler.pre_warmer) == 1, "it is taken up again later"
    replica.scheduler.abort("b")
    assert spans(replica.step()[0]) == [(8, 4)]


def test_without_a_time_budget_it_waits_until_nothing_runs() -> None:
    replica = Replica()
    answered(replica)
    replica.submit("b", [3, 3, 3], NEVER_ENDS)
    replica.step()
    assert spans(replica.step()[0]) == [(3, 1)]
    replica.scheduler.abort("b")
    assert (4, 8) in spans(replica.step()[0])


def test_beside_answers_it_takes_the_time_left_inside_their_target() -> None:
    replica = timed(6.0)
    answered(replica)
    replica.submit("b", [3, 3, 3], NEVER_ENDS)
    replica.step()
    assert spans(replica.step()[0]) == [(3, 1), (4, 5)]
    replica = timed(1.0)
    answered(replica)
    replica.submit("b", [3, 3, 3], NEVER_ENDS)
    replica.step()
    assert spans(replica.step()[0]) == [(3, 1)], "there is none"


def test_pages_that_a_running_answer_needs_are_taken_from_it_first() -> None:
    replica = timed(3.0)
    config = replica.scheduler.config
    answered(replica)
    replica.submit("b", [3, 3, 3], NEVER_ENDS)
    replica.step()
    replica.step()
    assert replica.scheduler.pre_warmer.active is not None
    # The rest of the pool goes to somebody else, so that b finds no page when its first is full.
    held = replica.pool.allocate(replica.pool.available_pages)
    while replica.scheduler.pre_warmer.active is not None:
        replica.step()
    assert replica.scheduler.preemptions == 0
    assert [s.request_id for s in replica.scheduler.running] == ["b"]
    assert len(held) < config.total_pages


def test_awaited_pages_are_not_displaced() -> None:
    replica = Replica(total_pages=10, max_model_len=40, awaited_share=1.0)
    replica.submit("tool", [2] * 25, ONE)  # six full pages
    replica.finish()
    replica.scheduler.turn_ended("tool", 0, "tool_calls", None)
    answered(replica, form=[9] * 20)
    replica.finish()
    assert replica.scheduler.pre_warmer.computed_tokens == 0
    assert replica.pool.idle_of("awaited") == 6


def test_the_oldest_form_is_forgotten_beyond_the_limit_and_cached_ones_cost_nothing() -> None:
    replica = Replica(max_pre_warms=2)
    for name, first in (("a", 9), ("b", 8), ("c", 7)):
        replica.submit(name, PROMPT, ONE)
        while name in replica.scheduler._requests:
            replica.step()
        replica.scheduler.pre_warmer.add(name, b"root", [first] * 4)
    assert len(replica.scheduler.pre_warmer) == 2
    replica.scheduler.pre_warmer.add("short", b"root", [1, 2, 3])
    assert len(replica.scheduler.pre_warmer) == 2, "no full page, nothing to warm"


def test_tenants_do_not_share_what_was_warmed() -> None:
    replica = Replica()
    answered(replica)
    replica.finish()
    assert replica.submit("b", [*FORM, 3], tenant="other") == 0


def test_pages_in_recent_use_are_not_displaced_and_older_ones_are() -> None:
    for idle_s, warms in ((59.0, False), (60.0, True)):
        replica = Replica(total_pages=10, max_model_len=40)
        scheduler = replica.scheduler
        scheduler.plan(now_s=1000.0)
        replica.submit("others", [3] * 33, ONE)
        replica.finish(1000.0)
        replica.submit("a", PROMPT, ONE)
        replica.finish(1000.0 + idle_s)
        scheduler.turn_ended("a", 0, "answer", 5, next_prefix=FORM, now_s=1000.0 + idle_s)
        assert replica.pool.free_pages == 1, "it lacks two"
        replica.finish(1000.0 + idle_s)
        assert scheduler.pre_warmer.computed_tokens == (8 if warms else 0)
        assert len(scheduler.pre_warmer) == 0

from __future__ import annotations

import pytest

from cost_model.machines import MACHINES
from cost_model.shape import V32
from loadtest.replica import Settings, replica
from loadtest.report import request_s
from loadtest.studies import (
    POLICIES,
    Group,
    Stream,
    agents_run,
    curve,
    overload_run,
    poisson,
)
from tests.loadtest.replicas import PATIENT

GROUP = Group(shape=V32, machine=MACHINES["h200"], gpus=8, seed=3, warm_up_s=20.0, until_s=60.0)
STREAM = Stream(prompt_tokens=(2000, 8000), output_tokens=(2, 8), seconds=4.0)


def test_every_policy_meets_the_same_agents_with_the_same_pages() -> None:
    ample = agents_run(GROUP, PATIENT, 6, "no pre-warm")
    assert ample.report.evictions == {"dead": 0, "stable": 0, "awaited": 0}
    assert ample.report.pre_warmed_tokens == 0
    assert 0 < ample.utilisation < 1
    assert 0 < ample.awaited_pages < ample.asked_again_pages < ample.working_set_pages
    runs = list(curve(GROUP, PATIENT, ample, [0.5]))
    assert tuple(one.policy for one in runs) == POLICIES
    pages = round(0.5 * ample.working_set_pages)
    for one in runs:
        assert (one.agents, one.report.pages) == (6, pages)
        assert one.cache_share == pytest.approx(0.5, abs=0.01)
        assert one.utilisation == ample.utilisation
        assert one.recomputed_per_request >= ample.recomputed_per_request
        assert one.live_pages <= pages
    plain, _, warm = runs
    assert plain.report.pre_warmed_tokens == 0 < warm.report.pre_warmed_tokens


def test_a_turn_waits_for_the_pages_that_others_hold() -> None:
    run = agents_run(GROUP, PATIENT, 6, "no pre-warm")
    busy = run.live_pages + run.awaited_pages
    assert run.least_wait_s(busy) == 0.0 == run.least_wait_s(2 * busy)
    assert run.least_wait_s(busy / 3) == pytest.approx(2 * run.turn_s)
    kinds = run.report.first_token_s
    turns = kinds["first"].count + kinds["user"].count
    assert run.turn_s * turns == pytest.approx(6 * run.report.seconds)


def test_a_stream_brings_the_work_it_is_asked_for() -> None:
    target = replica(V32, MACHINES["h200"], 8, Settings(rows_per_gpu=4))
    stream = Stream(seconds=600.0)
    for load in (0.5, 3.0):
        trace = poisson(target, stream, load, seed=1)
        work_s = sum(
            sum(request_s(target.coefficients, 2048, 0, one.prompt_tokens, one.output_tokens))
            for one in trace
        )
        assert work_s / (600.0 * target.room) == pytest.approx(load, rel=0.15)
        assert all(500 <= one.prompt_tokens <= 16_000 for one in trace)
        assert all(50 <= one.output_tokens <= 500 for one in trace)


def test_overload_refuses_some_and_keeps_what_it_promised() -> None:
    settings = Settings(rows_per_gpu=16, queue_s=1.0)
    calm, flood = (overload_run(GROUP, STREAM, load, settings).report for load in (0.3, 6.0))
    assert calm.refused == {}
    assert sum(flood.refused.values()) > 0
    assert flood.completed + sum(flood.refused.values()) == flood.requests
    assert flood.retry.count > 0
    assert flood.longest_refusal_s <= 0.05
    assert flood.inter_token_s.p99 <= 1.2 * flood.inter_token_target_s

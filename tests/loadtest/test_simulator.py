from __future__ import annotations

import pytest

from loadtest.simulator import Observed, Simulator
from loadtest.sources import TraceSource
from loadtest.traces import TraceRequest
from tests.loadtest.replicas import PATIENT, burst, few_agents, small


def ends(observed: Observed) -> list[tuple[str, float, float, int, int]]:
    return [
        (one.request.id, one.first_s, one.end_s, one.cached_tokens, one.recomputed_tokens)
        for one in observed.flights
    ]


def test_every_request_of_a_trace_is_served_once() -> None:
    trace = [
        TraceRequest(0.0, 1000, 6, (0, 1)),
        TraceRequest(0.0, 1300, 4, (0, 2, 3)),
        TraceRequest(3.0, 1100, 1, (0, 1, 4)),
        TraceRequest(400.0, 900, 9),
    ]
    simulator = Simulator(small(), TraceSource(trace))
    observed = simulator.run()
    first, second, third, last = observed.flights
    assert [one.generated_tokens for one in observed.flights] == [6, 4, 1, 9]
    assert len(observed.gaps_s) == 5 + 3 + 0 + 8
    assert (first.cached_tokens, second.cached_tokens) == (0, 512)  # waited for the shared block
    assert third.cached_tokens == 960  # whole pages of what the first computed
    assert last.arrival_s <= last.first_s < last.end_s == observed.end_s
    assert observed.busy_s < observed.end_s - 390
    assert simulator.scheduler.pool.live_pages == 0


def test_the_same_inputs_make_the_same_decisions() -> None:
    one, other = (Simulator(small(pages=600), few_agents()).run() for _ in range(2))
    assert ends(one) == ends(other)
    assert one.gaps_s == other.gaps_s
    assert one.evictions == other.evictions


def test_with_room_for_all_nothing_is_computed_again_but_parts_of_pages() -> None:
    observed = Simulator(small(pages=40_000), few_agents()).run()
    assert sum(observed.evictions.values()) == 0
    assert len(observed.flights) > 30
    assert all(one.recomputed_tokens < 64 for one in observed.flights)
    assert observed.pre_warmed_tokens > 0


def test_a_cache_too_small_computes_again_and_loses_nobody() -> None:
    simulator = Simulator(small(pages=150, retention=False), few_agents(12))
    observed = simulator.run()
    assert all(one.end_s > 0 for one in observed.flights)
    assert sum(one.recomputed_tokens for one in observed.flights) > 2000
    assert observed.evictions["stable"] > 0
    assert (observed.evictions["dead"], observed.pre_warmed_tokens) == (0, 0)
    assert simulator.scheduler.pool.live_pages == 0


def test_retention_computes_less_again_than_plain_lru() -> None:
    again = []
    for retention in (True, False):
        replica = small(pages=350, retention=retention)
        observed = Simulator(replica, few_agents(12, 300.0, PATIENT)).run()
        again.append(sum(one.recomputed_tokens for one in observed.flights))
    assert again[0] < 0.9 * again[1]


def test_a_pre_warmed_message_has_less_to_compute() -> None:
    left = []
    for pre_warm in (True, False):
        observed = Simulator(small(pages=40_000, pre_warm=pre_warm), few_agents()).run()
        users = [one for one in observed.flights if one.request.kind == "user"]
        left.append(sum(o.request.prompt_tokens - o.cached_tokens for o in users) / len(users))
    assert left[0] < 0.5 * left[1]


def test_preempted_requests_end_with_all_their_tokens() -> None:
    trace = burst(3, prompt_tokens=1800, output_tokens=600)
    replica = small(pages=100)
    observed = Simulator(replica, TraceSource(trace)).run()
    assert observed.preemptions > 0
    assert [one.generated_tokens for one in observed.flights] == [600] * 3
    assert max(one.starts for one in observed.flights) > 1
    assert sum(one.recomputed_tokens for one in observed.flights) > 0


def test_a_flood_is_refused_at_once_and_told_when_to_come_back() -> None:
    replica = small(queue_s=0.5)
    trace = burst(60, prompt_tokens=4000)
    simulator = Simulator(replica, TraceSource(trace))
    observed = simulator.run()
    refused = [one for one in observed.flights if one.refusal is not None]
    assert 0 < len(refused) < 60
    for one in refused:
        assert one.refusal is not None
        assert one.refusal.status == 429 and one.refusal.retry_after_s is not None
        assert one.end_s < 0 and one.generated_tokens == 0
    assert all(one.end_s > 0 for one in observed.flights if one.refusal is None)
    assert simulator.scheduler.backlog_tokens == 0


def test_refused_agents_come_back_and_are_served() -> None:
    observed = Simulator(small(queue_s=0.02), few_agents(12)).run()
    assert any(one.refusal is not None for one in observed.flights)
    served = {one.request.id for one in observed.flights if one.end_s > 0}
    late = {one.request.id for one in observed.flights if one.arrival_s > 50}
    assert {one.request.id for one in observed.flights} - served <= late


def test_what_can_never_fit_is_refused_without_being_built() -> None:
    trace = [TraceRequest(0.0, 1 << 20, 4), *burst(1, prompt_tokens=64)]
    observed = Simulator(small(), TraceSource(trace)).run()
    long, short = observed.flights
    assert long.refusal is not None and long.refusal.code == "context_length_exceeded"
    assert short.end_s > 0


def test_only_what_arrives_late_enough_is_measured() -> None:
    trace = burst(2, prompt_tokens=100, output_tokens=5, every_s=50.0)
    observed = Simulator(small(), TraceSource(trace), measure_from_s=10.0).run()
    assert len(observed.gaps_s) == 4


def test_gaps_keep_to_the_target_while_long_prompts_come() -> None:
    trace = [
        *burst(20, prompt_tokens=200, output_tokens=150),
        *(TraceRequest(1.0, 12_000, 2) for _ in range(4)),
    ]
    observed = Simulator(small(inter_token_target_s=0.04), TraceSource(trace)).run()
    assert max(observed.gaps_s) == pytest.approx(0.04, rel=0.1)

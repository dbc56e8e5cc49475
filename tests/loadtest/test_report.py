from __future__ import annotations

import pytest

from loadtest.door import Wait
from loadtest.report import percentiles, report, request_s, work_s
from loadtest.simulator import Flight, Observed
from loadtest.sources import Kind, Request
from scheduler.outcome import Refusal
from tests.loadtest.replicas import small


def flight(
    kind: Kind,
    *,
    arrival_s: float = 0.0,
    first_s: float = 1.0,
    gap_s: float = 0.02,
    cached_tokens: int = 0,
    recomputed_tokens: int = 0,
) -> Flight:
    request = Request("id", kind, "", ((5, 1000),), 1000, ((6, 11),), 11)
    one = Flight(request, arrival_s)
    one.first_s, one.end_s = first_s, first_s + 10 * gap_s
    one.generated_tokens = 11
    one.cached_tokens, one.recomputed_tokens = cached_tokens, recomputed_tokens
    return one


def observed(*flights: Flight) -> Observed:
    seen = Observed()
    seen.flights = list(flights)
    seen.end_s, seen.busy_s, seen.steps, seen.pre_warmed_tokens = 20.0, 5.0, 100, 77
    return seen


def test_figures_of_three_requests() -> None:
    late = flight("tool", first_s=9.0)
    slow = flight("user", gap_s=0.2, cached_tokens=640, recomputed_tokens=30)
    refused = flight("tool")
    refused.end_s = refused.first_s = -1.0
    refused.refusal = Refusal(429, "queue_full", "full", retry_after_s=1.0)
    refused.refused_s = 0.25
    replica = small()
    found = report(
        replica,
        observed(flight("user", cached_tokens=320), late, slow, refused),
        waits=[Wait(1.0, 2.0), Wait(3.0, 2.0)],
        first_token_target_s=5.0,
    )
    assert (found.requests, found.completed, found.refused) == (4, 3, {"queue_full": 1})
    assert found.hit_rate == pytest.approx(960 / 3000)
    assert (found.computed_prompt_tokens, found.recomputed_tokens) == (2040, 30)
    assert found.pre_warmed_tokens == 77
    assert found.goodput_tokens_per_s == pytest.approx(11 / 20)
    assert found.output_tokens_per_s == pytest.approx(33 / 20)
    assert found.in_time == pytest.approx(1 / 3)
    assert found.busy == 0.25
    one, room = replica.coefficients, 1 - replica.coefficients.step_s / 0.05
    spent_s = sum(sum(request_s(one, 2048, cached, 1000, 11)) for cached in (320, 0, 640))
    assert found.utilisation == pytest.approx(spent_s / 20 / room)
    assert found.longest_refusal_s == 0.25
    assert found.first_token_s["user"].count == 2
    assert found.first_token_s["all"].largest == 9.0
    assert found.retry.p50 == 0.5
    usd = 8 * 20 * replica.usd_per_hour / 3600
    assert found.dollars.usd == pytest.approx(usd)
    assert found.dollars.per_million_tokens == pytest.approx(usd / 3033 * 1e6)
    assert found.dollars.per_million_output_tokens == pytest.approx(usd / 33 * 1e6)


def test_what_arrives_before_the_measurement_is_left_out() -> None:
    found = report(
        small(),
        observed(flight("user"), flight("user", arrival_s=6.0, first_s=7.0)),
        first_token_target_s=5.0,
        measured_from_s=5.0,
    )
    assert (found.requests, found.seconds) == (1, 15.0)


def test_nothing_seen_is_all_zero() -> None:
    found = report(small(), Observed(), first_token_target_s=5.0)
    assert (found.requests, found.hit_rate, found.inter_token_s.p99) == (0, 0.0, 0.0)


def test_cached_tokens_cost_nothing() -> None:
    one = small().full_load
    all_s = work_s(one, 2048, [flight("user")])
    half_s = work_s(one, 2048, [flight("user", cached_tokens=512)])
    assert half_s[0] < 0.6 * all_s[0]
    assert half_s[1] == all_s[1] > 10 * one.decode_token_s


def test_percentiles() -> None:
    found = percentiles(range(101))
    assert (found.count, found.p50, found.p99, found.largest) == (101, 50.0, 99.0, 100.0)

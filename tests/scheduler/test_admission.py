"""A request is taken or refused by the last snapshot alone, and told when to come back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.messages import Snapshot
from scheduler.admission import (
    REMEMBERED_REFUSALS,
    REOPEN_SHARE,
    SHORTEST_RETRY_S,
    UNKNOWN_RETRY_S,
    Backlog,
    Gate,
    Limits,
    Sizes,
    after,
    refusal,
    wait_s,
)

LIMITS = Limits(max_model_len=1000, max_queued_requests=8, max_queued_tokens=2000)


def load(waiting: int = 1, rate: float = 100.0, **tenants: int) -> Backlog:
    return Backlog(
        waiting=waiting,
        backlog_tokens=sum(tenants.values()),
        tenant_backlog_tokens=tenants,
        drain_tokens_per_s=rate,
    )


def sizes(prompt_tokens: int = 100, tenant: str = "a", **more: Any) -> Sizes:
    return Sizes(prompt_tokens=prompt_tokens, tenant=tenant, **more)


@pytest.mark.parametrize(
    ("asked", "code", "param"),
    [
        (sizes(0), "invalid_request_error", "messages"),
        (sizes(1000), "context_length_exceeded", "messages"),
        (sizes(n=0), "invalid_request_error", "n"),
        (sizes(n=9), "invalid_request_error", "n"),
    ],
)
def test_what_never_fits_is_400_without_a_time(asked: Sizes, code: str, param: str) -> None:
    answer = refusal(load(), LIMITS, asked)
    assert answer is not None
    assert (answer.status, answer.code, answer.param) == (400, code, param)
    assert answer.retry_after_s is None


def test_a_full_queue_is_429_until_places_are_free() -> None:
    answer = refusal(load(8, a=800), LIMITS, sizes(n=2))
    assert answer is not None and (answer.status, answer.code) == (429, "queue_full")
    assert answer.retry_after_s == pytest.approx(2.0), "two of eight places, 800 tokens, 100 a s"
    assert refusal(load(6, a=800), LIMITS, sizes(n=2)) is None


def test_a_backlog_beyond_its_limit_is_429_until_there_is_room() -> None:
    answer = refusal(load(a=1900), LIMITS, sizes(300))
    assert answer is not None and (answer.status, answer.code) == (429, "backlog_full")
    assert answer.retry_after_s == pytest.approx(2.0), "200 tokens too many"
    assert refusal(load(a=1700), LIMITS, sizes(300)) is None


def test_an_empty_queue_takes_what_fits_the_window() -> None:
    tight = Limits(max_model_len=10_000, max_queued_requests=8, max_queued_tokens=2000)
    assert refusal(load(0), tight, sizes(9000)) is None


def test_a_tenant_below_its_share_is_taken_though_another_floods() -> None:
    flood = load(flood=2000)
    assert refusal(flood, LIMITS, sizes(100, "flood")) is not None
    assert refusal(flood, LIMITS, sizes(900, "calm")) is None
    beyond = refusal(after(flood, sizes(900, "calm")), LIMITS, sizes(200, "calm"))
    assert beyond is not None and beyond.code == "backlog_full"


def test_fairness_shortens_the_wait_of_who_asks_for_little() -> None:
    flood = load(flood=2000)
    assert wait_s(flood, "flood", 100) == pytest.approx(21.0)
    assert wait_s(flood, "calm", 100) == pytest.approx(2.0), "as much of the flood as of its own"
    assert wait_s(load(rate=0.0, a=5), "a", 100) is None


def test_a_deadline_that_cannot_be_met_is_503() -> None:
    answer = refusal(load(a=900), LIMITS, sizes(100, deadline_s=4.0))
    assert answer is not None and (answer.status, answer.code) == (503, "deadline_unreachable")
    assert answer.retry_after_s == pytest.approx(6.0)
    assert refusal(load(a=900), LIMITS, sizes(100, deadline_s=10.0)) is None
    assert refusal(load(rate=0.0, a=900), LIMITS, sizes(100, deadline_s=4.0)) is None, "unknown"


def test_without_a_rate_the_time_is_a_guess_and_never_nothing() -> None:
    answer = refusal(load(8, rate=0.0), LIMITS, sizes())
    assert answer is not None and answer.retry_after_s == UNKNOWN_RETRY_S
    answer = refusal(load(8, rate=1e9, a=1), LIMITS, sizes())
    assert answer is not None and answer.retry_after_s == SHORTEST_RETRY_S


def test_a_snapshot_is_a_load() -> None:
    snapshot = Snapshot(
        step=1,
        running=0,
        waiting=8,
        backlog_tokens=800,
        live_pages=0,
        idle_pages={},
        free_pages=1,
        total_pages=1,
        prefill_tokens_per_s=0.0,
        decode_tokens_per_s=0.0,
        preemptions=0,
        drain_tokens_per_s=100.0,
        tenant_backlog_tokens={"a": 800},
    )
    answer = refusal(snapshot, LIMITS, sizes())
    assert answer is not None and answer.retry_after_s == pytest.approx(1.0)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 999)), max_size=60))
def test_whatever_comes_the_queue_stays_bounded(asked: list[tuple[str, int]]) -> None:
    """In requests, and in tokens by twice the limit; who is refused knows when to come back."""
    limits = Limits(max_model_len=1000, max_queued_requests=40, max_queued_tokens=2000)
    now = load(0)
    for tenant, tokens in asked:
        answer = refusal(now, limits, sizes(tokens, tenant))
        if answer is None:
            now = after(now, sizes(tokens, tenant))
        else:
            assert answer.status == 429 and answer.retry_after_s is not None
        assert now.waiting <= 40
        assert now.backlog_tokens <= 2 * limits.max_queued_tokens
        assert now.backlog_tokens == sum(now.tenant_backlog_tokens.values())


# ---------------------------------------------------------------- who was refused


def test_who_was_refused_is_refused_until_the_time_it_was_told() -> None:
    gate = Gate(LIMITS)
    now = load(a=1900)
    told = gate.decide(now, sizes(300))
    assert told is not None and told.retry_after_s == pytest.approx(6.0), "down to 1600, 100 a s"
    for drained in (100, 300, 590):
        assert gate.decide(load(a=1900 - drained), sizes(300)) is not None
    assert gate.decide(load(a=1900 - 600), sizes(300)) is None
    assert gate.decide(load(a=1600), sizes(300)) is None, "open again up to the limit itself"


def test_the_gate_is_closed_to_the_tenant_that_was_refused_only() -> None:
    gate = Gate(LIMITS)
    flood = load(flood=2000)
    assert gate.decide(flood, sizes(100, "flood")) is not None
    assert gate.decide(flood, sizes(900, "calm")) is None
    assert gate.look(load(flood=1700), sizes(100, "flood")) is not None
    assert gate.look(load(flood=1500), sizes(100, "flood")) is None


def test_a_missed_deadline_does_not_close_the_queue() -> None:
    gate = Gate(LIMITS)
    late = gate.decide(load(a=900), sizes(100, deadline_s=8.0))
    assert late is not None and late.retry_after_s == pytest.approx(10.0 - REOPEN_SHARE * 8.0)
    assert gate.decide(load(a=1800), sizes(200)) is None
    assert gate.look(load(a=600), sizes(100, deadline_s=8.0)) is not None
    assert gate.decide(load(a=500), sizes(100, deadline_s=8.0)) is None


def test_an_empty_queue_opens_the_gate_to_whatever_fits() -> None:
    gate = Gate(LIMITS)
    assert gate.decide(load(8), sizes(n=8)) is not None
    assert gate.decide(load(0), sizes(n=8)) is None
    assert gate.decide(load(0, rate=1.0), sizes(100, deadline_s=99.0)) is not None
    assert gate.decide(load(0, rate=1.0), sizes(90, deadline_s=99.0)) is None


@given(
    st.lists(st.tuples(st.integers(1, 900), st.integers(0, 400)), max_size=40),
    st.integers(1, 900),
)
def test_nobody_gets_in_between_a_refusal_and_the_time_it_named(
    crowd: list[tuple[int, int]], prompt_tokens: int
) -> None:
    """Drained at the known rate, the queue takes the refused request when it was told, not before
    and not after, whoever else of its tenant asks in between."""
    gate, asked = Gate(LIMITS), sizes(prompt_tokens)
    told = gate.decide(load(a=1950), sizes(100)) and gate.look(load(a=1950), asked)
    assert told is not None and told.retry_after_s is not None
    tokens, left_s = 1950.0, told.retry_after_s
    for size, step in crowd:
        step_s = min(step / 100.0, left_s - 0.02)
        if step_s <= 0:
            break
        tokens, left_s = tokens - 100.0 * step_s, left_s - step_s
        if size >= prompt_tokens:
            assert gate.decide(load(a=int(tokens)), sizes(size)) is not None
    assert gate.look(load(a=int(tokens - 100.0 * left_s)), asked) is None


def test_a_gate_remembers_so_many_refusals_and_no_more() -> None:
    gate = Gate(LIMITS)
    for number in range(REMEMBERED_REFUSALS + 10):
        assert gate.decide(load(8, a=1900), sizes(300, f"user {number}")) is not None
    assert len(gate._closed) == REMEMBERED_REFUSALS

"""Spans, requests and steps: sums of single tokens, against sums done by hand or by Gauss."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_model.costs import (
    LONGEST_TOKENS,
    StepRow,
    dollars,
    mean_usd_per_million,
    request_cost,
    span_seconds,
    step_seconds,
    usd_per_million,
)
from cost_model.errors import CostError
from cost_model.measured import Measured
from cost_model.model import CostModel, Phase, total
from cost_model.paper import Paper
from cost_model.shape import V31, V32
from tests.cost_model.models import measured, models, phases, positions, prices

V32_DECODE = Paper(V32)
lengths = st.integers(0, 3000)


@settings(max_examples=40)
@given(models, phases, st.lists(positions, min_size=2, max_size=20))
def test_a_later_token_never_costs_less(model: CostModel, phase: Phase, asked: list[int]) -> None:
    usd = usd_per_million(model, phase, sorted(asked), 2.0)
    assert np.all(np.diff(usd) >= -1e-9 * usd[:-1])
    assert np.all(usd > 0)


@settings(max_examples=40)
@given(models, phases, positions, prices, prices)
def test_dollars_are_linear_in_the_price(
    model: CostModel, phase: Phase, position: int, one: float, other: float
) -> None:
    at_one, at_other, at_both = (
        float(usd_per_million(model, phase, position, price)) for price in (one, other, one + other)
    )
    assert at_one + at_other == pytest.approx(at_both, rel=1e-9)
    assert (at_one < at_other) == (one < other) or math.isclose(one, other)
    assert float(usd_per_million(model, phase, position, 0)) == 0


@settings(max_examples=40)
@given(models, phases, positions)
def test_the_breakdown_adds_up_and_none_of_it_is_negative(
    model: CostModel, phase: Phase, position: int
) -> None:
    parts = model.seconds(phase, position)
    assert all(float(seconds) >= 0 for seconds in parts.values())
    usd = float(usd_per_million(model, phase, position, 3.6))
    assert sum(float(one) for one in parts.values()) * 1000 == pytest.approx(usd, rel=1e-12)


@settings(max_examples=40)
@given(models, phases, positions)
def test_no_form_asked_for_is_cheaper_than_the_one_taken(
    model: CostModel, phase: Phase, position: int
) -> None:
    taken = float(total(model.seconds(phase, position)))
    costs = [float(total(model.seconds(phase, position, form))) for form in model.forms(phase)]
    assert min(costs) == pytest.approx(taken, rel=1e-12)


@settings(max_examples=40)
@given(models, phases, st.lists(positions, min_size=1, max_size=8))
def test_many_positions_at_once_are_the_same_as_one_by_one(
    model: CostModel, phase: Phase, asked: list[int]
) -> None:
    together = model.seconds(phase, asked)
    for index, position in enumerate(asked):
        alone = model.seconds(phase, position)
        assert alone.keys() == together.keys()
        for name, seconds in alone.items():
            assert float(seconds) == pytest.approx(float(together[name][index]), rel=1e-12)


@settings(max_examples=40)
@given(models, phases, positions, st.integers(0, 40))
def test_a_span_is_the_sum_of_its_tokens(
    model: CostModel, phase: Phase, start: int, count: int
) -> None:
    span = span_seconds(model, phase, start, start + count)
    one_by_one = [model.seconds(phase, start + index) for index in range(count)]
    for name, seconds in span.items():
        expected = sum(float(parts[name]) for parts in one_by_one)
        assert seconds == pytest.approx(expected, rel=1e-9, abs=1e-30)


@given(st.integers(0, 200_000), st.integers(0, 100_000))
def test_a_span_of_decode_by_gauss(start: int, count: int) -> None:
    """Sums of positions and of min(position, 2048) in closed form, at the paper's rates."""
    end = start + count

    def pairs(below: int) -> int:
        return below * (below - 1) // 2

    def selected(below: int) -> int:
        return pairs(min(below, 2048)) + max(below - 2048, 0) * 2048

    expected = {
        "fixed": count * 171.343e-6,
        "core_attention": (selected(end) - selected(start)) * 61 * 278_528 / (0.4 * 989.5e12),
        "indexer": (pairs(end) - pairs(start)) * 61 * 16_384 / (0.35 * 1979e12),
    }
    assert span_seconds(V32_DECODE, "decode", start, end) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=40)
@given(models, lengths, lengths, lengths, prices)
def test_a_request_is_its_prefill_and_its_decode(
    model: CostModel, cached: int, fresh: int, output: int, price: float
) -> None:
    prompt = cached + fresh
    cost = request_cost(model, prompt, cached, output, price)
    prefill = span_seconds(model, "prefill", cached, prompt)
    decode = span_seconds(model, "decode", prompt, prompt + output)
    if model.step_seconds:  # 3 ms in the measured one, for a batch of its own
        prefill["step"] = 0.003 if fresh else 0.0
        decode["step"] = output * 0.003 / cast(Measured, model).times.batch
    assert cost.prefill_seconds == prefill
    assert cost.decode_seconds == pytest.approx(decode, rel=1e-12)
    seconds = sum(prefill.values()) + sum(decode.values())
    assert cost.seconds == pytest.approx(seconds, rel=1e-12)
    assert cost.usd == pytest.approx(seconds * price / 3600, rel=1e-12)
    assert cost.prefill_usd + cost.decode_usd == pytest.approx(cost.usd, rel=1e-9)


def test_the_request_of_the_issue_by_hand() -> None:
    """32,000 prompt tokens of which 24,000 are cached, 1,200 of output, 2 USD per GPU-hour."""
    cost = request_cost(Paper(V32), 32_000, 24_000, 1200, 2.0)
    fresh_positions = (24_000 + 31_999) / 2 * 8000
    prefill = (
        8000 * (110.004e-6 + 2048 * 61 * 278_528 / (0.57337 * 989.5e12))
        + fresh_positions * 61 * 16_384 / 791.6e12
    )
    output_positions = (32_000 + 33_199) / 2 * 1200
    decode = (
        1200 * (171.343e-6 + 2048 * 61 * 278_528 / 395.8e12)
        + output_positions * 61 * 16_384 / 692.65e12
    )
    assert cost.prefill_usd == pytest.approx(prefill * 2 / 3600, rel=1e-9)
    assert cost.decode_usd == pytest.approx(decode * 2 / 3600, rel=1e-9)
    assert cost.usd == pytest.approx(0.001123, abs=5e-7)


@settings(max_examples=40)
@given(models, st.integers(1, 4000), st.integers(0, 4000))
def test_a_cached_token_saves_its_prefill(model: CostModel, prompt: int, cached: int) -> None:
    cached = min(cached, prompt)
    whole, part = (request_cost(model, prompt, known, 5, 2.0) for known in (0, cached))
    saved = sum(span_seconds(model, "prefill", 0, cached).values())
    saved += model.step_seconds if cached == prompt else 0.0
    assert whole.seconds - part.seconds == pytest.approx(saved, rel=1e-6, abs=1e-12)
    assert whole.decode_seconds == part.decode_seconds


@settings(max_examples=40)
@given(
    models,
    st.lists(st.builds(StepRow, phases, st.integers(0, 50_000), st.integers(0, 300)), max_size=6),
)
def test_a_step_is_its_spans_and_its_intercept(model: CostModel, rows: list[StepRow]) -> None:
    spans = [
        sum(span_seconds(model, row.phase, row.start, row.start + row.count).values())
        for row in rows
    ]
    assert step_seconds(model, rows) == pytest.approx(model.step_seconds + sum(spans), rel=1e-9)


def test_the_intercept_is_paid_once_a_step() -> None:
    model = measured(step_seconds=0.25)
    row = StepRow("decode", 100)
    alone = step_seconds(model, [row])
    assert alone > 0.25
    assert step_seconds(model, [row, row]) - alone == pytest.approx(alone - 0.25)
    assert step_seconds(model, []) == 0.25


@settings(max_examples=40)
@given(models, phases, st.integers(0, 5000), st.integers(1, 500), prices)
def test_a_mean_lies_between_its_first_and_last_token(
    model: CostModel, phase: Phase, start: int, count: int, price: float
) -> None:
    mean = mean_usd_per_million(model, phase, start, start + count, price)
    first, last = usd_per_million(model, phase, [start, start + count - 1], price)
    assert first * (1 - 1e-9) <= mean <= last * (1 + 1e-9)


def test_the_mean_of_a_straight_line_is_its_middle() -> None:
    middle = float(usd_per_million(Paper(V31), "decode", 500.5, 2.0))
    assert mean_usd_per_million(Paper(V31), "decode", 1, 1001, 2.0) == pytest.approx(middle)


def test_dollars_of_an_hour_are_the_price() -> None:
    assert dollars(3600, 2.5) == 2.5


TOO_LONG = LONGEST_TOKENS + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, 0, 2.0), "prompt is -1; allowed: 0 to"),
        ((TOO_LONG, 0, 0, 2.0), f"prompt is {TOO_LONG}; allowed: 0 to {LONGEST_TOKENS} tokens"),
        ((10, 11, 0, 2.0), "cached is 11; allowed: 0 to prompt = 10 tokens"),
        ((10, -1, 0, 2.0), "cached is -1"),
        ((10, 0, -1, 2.0), "output is -1"),
        ((10, 0, TOO_LONG, 2.0), f"output is {TOO_LONG}"),
        ((10, 0, 1, -0.5), "price is -0.5; allowed: 0 to"),
        ((10, 0, 1, float("nan")), "price is nan"),
        ((10, 0, 1, float("inf")), "price is inf"),
    ],
)
def test_absurd_requests_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(CostError, match=message):
        request_cost(Paper(V32), *arguments)


def test_absurd_spans_and_steps_are_refused() -> None:
    model = Paper(V32)
    with pytest.raises(CostError, match="end is 3; allowed: start = 4 and above"):
        span_seconds(model, "decode", 4, 3)
    with pytest.raises(CostError, match="start is -4"):
        span_seconds(model, "decode", -4, 3)
    with pytest.raises(CostError, match="phase is 'verify'"):
        step_seconds(model, [StepRow("verify", 0)])  # type: ignore[arg-type]
    with pytest.raises(CostError, match="end is 8"):
        step_seconds(model, [StepRow("decode", 9, -1)])
    with pytest.raises(CostError, match="end is 7; allowed: above start = 7"):
        mean_usd_per_million(model, "decode", 7, 7, 2.0)
    with pytest.raises(CostError, match="price is -1"):
        usd_per_million(model, "decode", 7, -1)

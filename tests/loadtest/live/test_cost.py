"""Dollars of a window: from Winnow's counters, and from a price alone."""

from __future__ import annotations

import pytest

from cost_model.costs import request_cost
from cost_model.presets import choose
from loadtest.live.cost import cost_by_counters, cost_by_price
from loadtest.live.samples import Sample
from loadtest.live.scrape import Counts, PhaseCounts
from loadtest.live.window import Window

WINDOW = Window(10.0, 20.0)


def counts(at_s: float) -> Counts:
    """Busy for 0.6 of the time: 100 prompt tokens and 50 output tokens a second."""
    phases = {
        "prefill": PhaseCounts(0.2 * at_s, 100 * at_s, 300 * at_s, 1e6 * at_s, 1e-4 * at_s),
        "decode": PhaseCounts(0.4 * at_s, 50 * at_s, 0.0, 25e3 * at_s, 1e-4 * at_s),
    }
    return Counts(at_s, phases, 1.8, "roofline, cpu")


def test_by_counters() -> None:
    cost = cost_by_counters(
        [counts(float(at)) for at in range(30)], WINDOW, gpus=1, usd_per_hour=None
    )
    assert cost is not None
    assert cost.gpu_seconds == pytest.approx(6.0) and cost.tokens == pytest.approx(1500)
    # 6 GPU-seconds at 1.8 USD an hour are 0.003 USD.
    assert cost.usd == pytest.approx(0.003)
    assert cost.usd_per_million_tokens == pytest.approx(2.0)
    assert cost.expected_usd == pytest.approx(0.002) and cost.times_expected == pytest.approx(1.5)
    assert cost.utilisation == pytest.approx(0.6) and cost.rented_usd == pytest.approx(0.005)
    prefill, decode = cost.phases
    assert prefill.usd_per_million_tokens == pytest.approx(1.0)
    assert decode.usd_per_million_tokens == pytest.approx(4.0)
    assert decode.mean_context_tokens == pytest.approx(500)
    assert (prefill.times_expected, decode.times_expected) == (
        pytest.approx(1.0),
        pytest.approx(2.0),
    )


def test_another_price_changes_dollars_and_no_ratio() -> None:
    scrapes = [counts(0.0), counts(30.0)]
    own = cost_by_counters(scrapes, WINDOW, gpus=2, usd_per_hour=None)
    double = cost_by_counters(scrapes, WINDOW, gpus=2, usd_per_hour=3.6)
    assert own is not None and double is not None
    assert double.usd == pytest.approx(2 * own.usd)
    assert double.times_expected == pytest.approx(own.times_expected)
    assert own.utilisation == pytest.approx(0.3)


def test_a_price_of_nothing_has_no_ratio() -> None:
    cost = cost_by_counters([counts(0.0), counts(30.0)], WINDOW, gpus=1, usd_per_hour=0.0)
    assert cost is not None and cost.usd == 0.0 and cost.times_expected is None


def test_counters_that_say_nothing() -> None:
    assert cost_by_counters([], WINDOW, gpus=1, usd_per_hour=2.0) is None


def sample(sent_s: float, prompt: int, cached: int, output: int) -> Sample:
    return Sample(
        "chat",
        sent_s,
        sent_s,
        "answered",
        end_s=sent_s + 5,
        prompt_tokens=prompt,
        cached_tokens=cached,
        output_tokens=output,
    )


SAMPLES = [sample(8.0, 4000, 1000, 500), sample(9.0, 100, 0, 2000), sample(19.0, 7, 0, 7)]
"""The last one ends after the window."""


def test_by_price_and_the_cost_model_at_the_same_positions() -> None:
    chosen = choose("paper", price=2.0)
    cost = cost_by_price(SAMPLES, WINDOW, gpus=8, usd_per_hour=2.0, expected=chosen)
    assert cost is not None
    assert cost.gpu_seconds == 80.0 and cost.tokens == 3000 + 500 + 100 + 2000
    assert cost.usd == pytest.approx(80 * 2 / 3600)
    expected = [
        request_cost(chosen.model, one.prompt_tokens, one.cached_tokens, one.output_tokens, 2.0)
        for one in SAMPLES[:2]
    ]
    assert cost.expected_usd == pytest.approx(sum(one.usd for one in expected), rel=1e-9)
    assert cost.times_expected == pytest.approx(cost.usd / sum(one.usd for one in expected))
    assert cost.utilisation is None and cost.phases[0].gpu_seconds is None
    prefill_usd = sum(one.prefill_usd for one in expected)
    assert cost.phases[0].expected_usd_per_million_tokens == pytest.approx(prefill_usd / 3100 * 1e6)


def test_by_price_alone_and_with_nothing() -> None:
    alone = cost_by_price(SAMPLES, WINDOW, gpus=1, usd_per_hour=2.0, expected=None)
    assert alone is not None and alone.times_expected is None and alone.expected_usd is None
    assert cost_by_price([], WINDOW, gpus=1, usd_per_hour=2.0, expected=None) is None

"""Winnow's cost series: names as the server has them, sums, and differences in time."""

from __future__ import annotations

import pytest

from api.metrics import names
from loadtest.live import scrape
from loadtest.live.scrape import Counts, PhaseCounts, between, read_counts

BASE = 'model_name="m",engine="{engine}",role="mixed"'


def exposition(gpu_seconds: float = 10.0, engines: int = 1) -> bytes:
    """What a server shows; every series of it per engine."""
    lines = ["# HELP winnow_gpu_seconds_total Time.", "# TYPE winnow_gpu_seconds_total counter"]
    for engine in range(engines):
        base = BASE.format(engine=engine)
        lines += [
            f'winnow_gpu_seconds_total{{{base},phase="prefill"}} {gpu_seconds}',
            f'winnow_gpu_seconds_total{{{base},phase="decode"}} {2 * gpu_seconds}',
            f'winnow_tokens_total{{{base},phase="prefill",source="computed"}} 100',
            f'winnow_tokens_total{{{base},phase="prefill",source="pre_warmed"}} 20',
            f'winnow_tokens_total{{{base},phase="prefill",source="cached"}} 64',
            f'winnow_tokens_total{{{base},phase="decode",source="computed"}} 50',
            f'winnow_context_tokens_total{{{base},phase="decode"}} 5e3',
            f'winnow_expected_cost_usd_total{{{base},phase="decode"}} 0.25',
            f"winnow_gpu_price_usd_per_hour{{{base}}} 2.0",
            f'winnow_cost_model_info{{{base},preset="paper",machine="h800"}} 1.0',
            f'winnow_step_seconds_bucket{{{base},phase="decode",le="0.1"}} 4',
        ]
    return "\n".join(lines).encode() + b"\n"


def test_the_names_are_the_server_s() -> None:
    ours = (names.GPU_SECONDS, names.EXPECTED_COST, names.TOKENS, names.CONTEXT_TOKENS)
    assert tuple(metric.name for metric in (*ours, names.PRICE, names.COST_MODEL)) == scrape.WANTED


@pytest.mark.parametrize("engines", [1, 3])
def test_counters_are_read_and_engines_added_up(engines: int) -> None:
    counts = read_counts(exposition(engines=engines), 7.0)
    assert counts is not None and counts.at_s == 7.0
    assert counts.phases["prefill"] == PhaseCounts(10.0 * engines, 120.0 * engines, 64.0 * engines)
    assert counts.phases["decode"] == PhaseCounts(
        gpu_seconds=20.0 * engines,
        computed_tokens=50.0 * engines,
        context_tokens=5000.0 * engines,
        expected_usd=0.25 * engines,
    )
    assert (counts.usd_per_hour, counts.cost_model) == (2.0, "paper, h800")


@pytest.mark.parametrize("text", [b"", b"vllm:num_requests_running 1\n", b"<html>"])
def test_another_server_has_none(text: bytes) -> None:
    assert read_counts(text, 0.0) is None


def counts(at_s: float, gpu_seconds: float) -> Counts:
    return Counts(at_s, {"decode": PhaseCounts(gpu_seconds, 10 * gpu_seconds)}, 2.0, "paper")


SCRAPES = [counts(0.0, 100.0), counts(2.0, 101.0), counts(4.0, 105.0)]


@pytest.mark.parametrize(
    ("begin_s", "end_s", "seconds", "gpu_seconds"),
    [(0, 4, 4, 5), (2, 4, 2, 4), (1, 3, 2, 2.5), (-5, 1, 1, 0.5), (3, 9, 1, 2), (2.5, 3.0, 0.5, 1)],
)
def test_what_was_counted_in_between(
    begin_s: float, end_s: float, seconds: float, gpu_seconds: float
) -> None:
    counted = between(SCRAPES, begin_s, end_s)
    assert counted is not None
    assert counted.seconds == pytest.approx(seconds)
    assert counted.phases["decode"].gpu_seconds == pytest.approx(gpu_seconds)
    assert counted.phases["decode"].computed_tokens == pytest.approx(10 * gpu_seconds)


@pytest.mark.parametrize(("begin_s", "end_s"), [(5, 9), (-3, -1), (2, 2)])
def test_nothing_is_known_outside(begin_s: float, end_s: float) -> None:
    assert between(SCRAPES, begin_s, end_s) is None


def test_too_few_scrapes_and_a_server_that_was_started_anew() -> None:
    assert between(SCRAPES[:1], 0, 4) is None
    assert between([counts(0.0, 100.0), counts(4.0, 1.0)], 0, 4) is None


def test_a_counter_that_went_back_in_between_makes_all_unknown() -> None:
    """As when two servers answer by turns: the ends alone look well."""
    values = [10.0, 900.0, 12.0, 910.0]
    scrapes = [read_counts(exposition(value), float(at)) for at, value in enumerate(values)]
    assert between([one for one in scrapes if one is not None], 0.0, 3.0) is None

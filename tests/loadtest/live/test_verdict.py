"""Targets kept, missed and unknown, and the exit status of each."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from loadtest.live.cost import cost_by_counters
from loadtest.live.figures import Figures, figures
from loadtest.live.samples import Sample
from loadtest.live.scrape import Counts, PhaseCounts
from loadtest.live.targets import NONE, CostLimits, Failures, Generator, Goodput, Targets
from loadtest.live.verdict import ExitStatus, verdict
from loadtest.live.window import Window
from tests.loadtest.live.test_figures import LIMITS, SAMPLES, WINDOW


def seen(samples: list[Sample] = SAMPLES, *, cost: bool = True) -> Figures:
    scrapes = [
        Counts(at, {"prefill": _phase(at), "decode": _phase(at)}, 3600.0, "paper")
        for at in (0.0, 30.0)
    ]
    found = cost_by_counters(scrapes, WINDOW, gpus=1, usd_per_hour=None) if cost else None
    return figures(
        samples,
        WINDOW,
        run_s=30.0,
        limits=LIMITS,
        lag=(np.full(100, 0.002), np.full(100, 0.001)),
        cost=found,
        open_loop=False,
    )


def _phase(at_s: float) -> PhaseCounts:
    """One USD and a million tokens a second; expected: half of it."""
    return PhaseCounts(at_s, 1e6 * at_s, 0.0, 0.0, 0.5 * at_s)


KEPT: list[dict[str, Any]] = [
    {"latency": {"": {"first_token": {"p50_s": 0.5001, "max_s": 3.1}}}},
    {"latency": {"agent": {"time_per_output_token": {"mean_s": 0.21}}}},
    {"goodput": Goodput(first_token_s=1.0, share=0.2)},
    {"goodput": Goodput(requests_per_s=0.1)},
    {"failures": Failures(0.4)},
    {"cost": CostLimits(usd_per_million_tokens=1.01, times_expected=2.01)},
    {"cost": CostLimits(usd_per_million_prompt_tokens=1.01, usd_per_million_output_tokens=1.01)},
    {"generator": Generator(0.002)},
]
MISSED: list[dict[str, Any]] = [
    {"latency": {"": {"first_token": {"p50_s": 0.4999}}}},
    {"latency": {"agent": {"end_to_end": {"p99_s": 3.8}}}},
    {"goodput": Goodput(first_token_s=1.0, share=0.21)},
    {"goodput": Goodput(requests_per_s=0.11)},
    {"failures": Failures(0.39)},
    {"cost": CostLimits(usd_per_million_tokens=0.99)},
    {"cost": CostLimits(times_expected=1.99)},
    {"cost": CostLimits(usd_per_million_output_tokens=0.99)},
    {"generator": Generator(0.0019)},
]


@pytest.mark.parametrize("targets", KEPT, ids=str)
def test_kept(targets: dict[str, Any]) -> None:
    found = verdict(seen(), Targets(**targets))
    assert found.status == ExitStatus.KEPT and found.checks and not found.missed


@pytest.mark.parametrize("targets", MISSED, ids=str)
def test_missed(targets: dict[str, Any]) -> None:
    found = verdict(seen(), Targets(**targets))
    assert found.status == ExitStatus.MISSED and len(found.missed) == 1


@pytest.mark.parametrize(
    "targets",
    [
        {"latency": {"long-context": {"first_token": {"p50_s": 9.0}}}},
        {"cost": CostLimits(usd_per_million_tokens=9.0)},
    ],
    ids=str,
)
def test_a_target_that_nothing_can_be_held_against(targets: dict[str, Any]) -> None:
    figures = seen(cost=False)
    found = verdict(figures, Targets(**targets))
    assert found.status == ExitStatus.NO_DATA and len(found.unknown) == 1
    missed = verdict(figures, Targets(**targets, failures=Failures(0.0)))
    assert missed.status == ExitStatus.MISSED, "what was missed is known all the same"


def test_without_targets_a_run_passes_if_it_saw_anything() -> None:
    assert verdict(seen(), NONE).status == ExitStatus.KEPT


@pytest.mark.parametrize(
    "samples", [[], [Sample("chat", 11.0, 11.0, "failed", 0, "connect", end_s=11.1)]]
)
def test_without_an_answer_there_is_no_data(samples: list[Sample]) -> None:
    targets = Targets(failures=Failures(0.0))
    assert verdict(seen(samples), targets).status == ExitStatus.NO_DATA
    assert verdict(seen(samples), NONE).status == ExitStatus.NO_DATA


def test_the_empty_window_has_no_data() -> None:
    empty = msgspec.structs.replace(seen([]), window=Window(0.0, 0.0))
    assert verdict(empty, Targets(goodput=Goodput(first_token_s=1, share=0.5))).status == 3

"""Text and report of a run whose figures are known."""

from __future__ import annotations

import html
import re
from xml.etree import ElementTree

import msgspec
import pytest

from loadtest.live.figures import Figures
from loadtest.live.outcome import Outcome, warnings
from loadtest.live.page import page
from loadtest.live.samples import Sample
from loadtest.live.tables import outcome as as_text
from loadtest.live.targets import NONE, CostLimits, Failures, Goodput, Targets
from loadtest.live.verdict import verdict
from loadtest.live.window import Window
from tests.loadtest.live.test_figures import SAMPLES
from tests.loadtest.live.test_scrape import counts
from tests.loadtest.live.test_verdict import seen

TARGETS = Targets(
    goodput=Goodput(first_token_s=1.0, share=0.9),
    failures=Failures(0.5),
    cost=CostLimits(times_expected=3.0),
)


def outcome(
    figures: Figures, targets: Targets = TARGETS, failures: tuple[str, ...] = ()
) -> Outcome:
    return Outcome(
        begun="2026-11-22T12:00:00+00:00",
        server="http://127.0.0.1:8000/v1",
        model="<b>model</b>",
        plan="mixed: closed loop, 3 users",
        command="winnow load --serve",
        versions={"winnow": "0.1.0"},
        failures=failures,
        warnings=warnings(figures, failures, interrupted=False),
        figures=figures,
        verdict=verdict(figures, targets, failed=bool(failures)),
    )


def test_the_text_says_everything_in_a_hundred_columns() -> None:
    text = as_text(outcome(seen()))
    assert max(map(len, text.splitlines())) <= 100
    for part in (
        "goodput          20.0 % of the requests sent, 0.10 a second",
        "  good is        first token within 1 s, time per output token within 0.5 s",
        "1 queue_full, 1 unfinished",
        "generator's lag  p50 2.00 ms, p99 2.00 ms",
        "time per output token",
        "goodput.share         at least 90.0 %  20.0 %    MISSED",
        "failures.share        at most 50.0 %   40.0 %    kept",
        "cost.times_expected   at most 3x       2x        kept",
        "a target was missed (exit status 2)",
    ):
        assert re.sub(" +", " ", part) in re.sub(" +", " ", text), part


@pytest.mark.check
def test_the_report_stands_alone() -> None:
    text = page(outcome(seen()), SAMPLES, [counts(0.0, 0.0), counts(9.0, 3.0)], None)
    assert not re.findall(r"<(?:script|link|img|iframe)\b|@import|url\(http", text)
    assert set(re.findall(r'(?:href|src)="([^"#]+)', text)) == set()
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(drawings) == 6
    for drawing in drawings:
        # matplotlib writes the prefix xlink with the namespace it belongs to.
        ElementTree.fromstring(drawing)
    assert "&lt;b&gt;model&lt;/b&gt;" in text and "<b>model" not in text
    said = html.unescape(re.sub(r"<[^>]+>", " ", text))
    assert "1 of 3 targets was missed." in said and "against the cost model" in said
    assert "2.00x" in said and "Again" in said


@pytest.mark.check
def test_a_report_without_cost_or_targets() -> None:
    text = page(outcome(seen(cost=False), NONE), SAMPLES, [], None)
    assert "No targets were given" in text and "Cost</h2>" not in text
    assert text.count("<svg") == 5


NO_ANSWER = [[], [Sample("chat", 11.0, 11.0, "failed", 0, "connect")]]


@pytest.mark.parametrize("samples", NO_ANSWER)
def test_a_run_that_saw_nothing_says_so(samples: list[Sample]) -> None:
    found = outcome(seen(samples))
    assert "No request that was sent in the steady-state window was answered." in found.warnings
    assert "no data for the targets (exit status 3)" in as_text(found)


@pytest.mark.check
@pytest.mark.parametrize("samples", NO_ANSWER)
def test_a_report_of_nothing(samples: list[Sample]) -> None:
    assert "There is no data" in page(outcome(seen(samples)), samples, [], None)


def test_errors_of_the_load_generator_are_counted_and_are_the_verdict() -> None:
    text = as_text(outcome(seen(), failures=("TypeError: no", "KeyError: 'x'")))
    assert "! The load generator itself failed 2 times" in text and "TypeError: no" in text
    assert text.endswith("the load generator itself failed (exit status 1)")


@pytest.mark.check
def test_a_report_of_a_run_that_failed_itself() -> None:
    text = page(outcome(seen(), failures=("TypeError: <no>",)), SAMPLES, [], None)
    assert "The load generator itself failed once" in text and "TypeError: &lt;no&gt;" in text
    assert 'class="verdict kept"' not in text


def test_what_a_reader_must_know_before_the_figures() -> None:
    piling_up = msgspec.structs.replace(seen(), window=Window(10.0, 20.0, 1, growth=3.0))
    said = " ".join(warnings(piling_up, interrupted=True))
    assert "interrupted" in said and "Not steady: 3.0 times" in said
    assert "1 requests were still running" in said
    assert "late itself" not in said

"""The report of a load test: one HTML file with everything in it, to be read by anybody."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from loadtest.live import plots, tables
from loadtest.live.figures import ALL, Figures
from loadtest.live.outcome import Outcome
from loadtest.live.samples import Sample
from loadtest.live.scrape import Counts
from loadtest.live.verdict import ExitStatus

PAGES = Path(__file__).parent / "pages"
SENTENCES = {
    ExitStatus.KEPT: "Every target was kept.",
    ExitStatus.NO_DATA: "There is no data to hold against the targets.",
    ExitStatus.FAILED: "The load generator itself failed: this run says little of the server.",
}


def page(
    outcome: Outcome, samples: Sequence[Sample], scrapes: Sequence[Counts], price: float | None
) -> str:
    """Returns the HTML. Nothing of it is loaded from anywhere. price: None is the server's own."""
    environment = Environment(
        loader=FileSystemLoader(PAGES),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        outcome=outcome,
        figures=outcome.figures,
        cost=outcome.figures.cost,
        kept=outcome.verdict.status == ExitStatus.KEPT,
        sentence=_sentence(outcome),
        cards=_cards(outcome.figures),
        checks=[(tables.check_cells(one), one.kept) for one in outcome.verdict.checks],
        totals=tables.totals(outcome.figures),
        latencies=_latencies(outcome.figures),
        plots=_plots(outcome.figures, samples, scrapes, price),
        number=tables.number,
        times=tables.times,
    )


def _sentence(outcome: Outcome) -> str:
    found = outcome.verdict
    if not found.checks and found.status == ExitStatus.KEPT:
        return "No targets were given; these are the figures."
    missed = len(found.missed)
    if found.status == ExitStatus.MISSED:
        return f"{missed} of {len(found.checks)} targets {'was' if missed == 1 else 'were'} missed."
    return SENTENCES[found.status]


def _cards(figures: Figures) -> list[tuple[str, str, str]]:
    """(what, value, what that means), for who reads no further."""
    whole, cost = figures.all, figures.cost
    if not whole.answered:
        return [("answered", "0", f"of {whole.sent:,} requests")]
    kept = "kept every limit" if figures.limits else "were answered"
    cards = [
        ("good requests", tables.share(whole.good, whole.sent), f"of {whole.sent:,} sent {kept}"),
        (
            "first token",
            f"{whole.first_token.p95.value:.2f} s",
            f"or sooner for 95 of 100 requests; half of them had it in "
            f"{whole.first_token.p50.value:.2f} s",
        ),
    ]
    if whole.time_per_output_token.count:
        per_token_s = whole.time_per_output_token.p50.value
        cards.append(
            (
                "reading speed",
                f"{1 / per_token_s:.0f} tokens/s" if per_token_s else "at once",
                "for half of the users; "
                f"{1000 * whole.time_per_output_token.p95.value:.0f} ms per token at p95",
            )
        )
    if cost is not None:
        cards.append(
            (
                "cost",
                f"{tables.number(cost.usd_per_million_tokens, 3)} USD",
                f"per million tokens, at {cost.usd_per_hour:g} USD per GPU-hour",
            )
        )
        if cost.times_expected is not None:
            cards.append(
                (
                    "against the cost model",
                    tables.times(cost.times_expected),
                    "what the same tokens should have cost, each where it stood in its context",
                )
            )
    return cards


def _latencies(figures: Figures) -> list[tuple[str, list[tuple[str, object]]]]:
    """(workload, its distributions by name)."""
    return [
        (
            name or "all requests",
            [(words, getattr(one, attribute)) for attribute, words in tables.LATENCY_NAMES.items()],
        )
        for name, one in sorted(figures.workloads.items(), key=lambda item: item[0] != ALL)
    ]


def _plots(
    figures: Figures, samples: Sequence[Sample], scrapes: Sequence[Counts], price: float | None
) -> list[tuple[str, Markup]]:
    drawn = [
        ("How long users wait for the first token", plots.first_tokens(figures, samples)),
        ("How fast the answer comes", plots.per_token(figures, samples)),
        ("How evenly it comes", plots.gaps(figures, samples)),
        ("The load; grey is the window that counts", plots.load_over_time(figures, samples)),
        ("Tokens computed and read", plots.rates(figures, samples)),
    ]
    if len(scrapes) > 1:
        drawn.append(("What a token costs", plots.cost_over_time(figures, scrapes, price)))
    # Our own drawing, of numbers and names of workloads.
    return [(title, Markup(plots.svg(figure))) for title, figure in drawn]

"""A load test's figures as text, 100 columns at most."""

from __future__ import annotations

import textwrap

from cost_model.tables import NONE, WIDTH, table
from loadtest.live.cost import Cost
from loadtest.live.distribution import Distribution
from loadtest.live.figures import ALL, Figures, WorkloadFigures
from loadtest.live.outcome import Outcome
from loadtest.live.verdict import Check, ExitStatus

LATENCY_NAMES = {
    "first_token": "time to first token",
    "inter_token": "gap between chunks",
    "time_per_output_token": "time per output token",
    "end_to_end": "whole answer",
}
STATUS_WORDS = {
    ExitStatus.KEPT: "every target was kept",
    ExitStatus.MISSED: "a target was missed",
    ExitStatus.NO_DATA: "no data for the targets",
    ExitStatus.FAILED: "the load generator itself failed",
}


def outcome(found: Outcome) -> str:
    """All of it: totals, latencies, cost, targets."""
    figures = found.figures
    window = figures.window
    parts = [
        f"{found.plan}\n{found.server}, model {found.model}\n"
        f"steady-state window {window.begin_s:.1f} to {window.end_s:.1f} s "
        f"of {figures.run_s:.1f} s, "
        f"{window.in_flight_median} requests in flight at the median",
        table(("", ""), totals(figures), left=2).strip("\n"),
        table(
            ("seconds", "count", "mean", "p50", "p90", "p95", "p99", "longest"),
            [row for name in figures.workloads for row in latencies(figures, name)],
        ),
    ]
    if figures.cost is not None:
        parts.append(cost(figures.cost))
    if found.verdict.checks:
        rows = [check_cells(check) for check in found.verdict.checks]
        parts.append(table(("target", "asked for", "measured", ""), rows))
    parts += ["\n".join(textwrap.wrap(f"! {one}", WIDTH)) for one in found.warnings]
    parts.append(status_line(found))
    return "\n\n".join(parts)


def status_line(found: Outcome) -> str:
    """One line: the verdict."""
    if not found.verdict.checks and found.verdict.status == ExitStatus.KEPT:
        return "no targets were given"
    return f"{STATUS_WORDS[found.verdict.status]} (exit status {int(found.verdict.status)})"


def totals(figures: Figures) -> list[tuple[str, str]]:
    """What was sent and what came of it."""
    whole = figures.all
    errors = ", ".join(f"{count:,} {code}" for code, count in sorted(whole.errors.items()))
    limits = ", ".join(
        f"{name.removesuffix('_s').replace('_', ' ')} within {limit:g} s"
        for name, limit in figures.limits.items()
    )
    rows = [
        ("requests", f"{whole.sent:,} sent in the window, {whole.answered:,} answered"),
        ("not answered", errors or "none"),
        (
            "goodput",
            f"{share(whole.good, whole.sent)} of the requests sent, "
            f"{figures.good_requests_per_s:.2f} a second",
        ),
        ("  good is", limits or "answered (no limits were given)"),
        (
            "throughput",
            f"{figures.requests_per_s:.2f} requests/s, "
            f"{figures.prompt_tokens_per_s:,.0f} prompt and "
            f"{figures.output_tokens_per_s:,.0f} output tokens/s",
        ),
        (
            "tokens",
            f"{whole.prompt_tokens:,} prompt, {share(whole.cached_tokens, whole.prompt_tokens)} "
            f"found in the cache; {whole.output_tokens:,} output, "
            f"{share(whole.reasoning_tokens, whole.output_tokens)} reasoning",
        ),
    ]
    rows += [
        (
            f"  {name}",
            f"{one.answered:,} of {one.sent:,} answered, {share(one.good, one.sent)} good; "
            f"{share(one.cached_tokens, one.prompt_tokens)} of the prompt tokens cached",
        )
        for name, one in figures.workloads.items()
        if name != ALL
    ]
    if whole.asked_calls:
        rows.append(("tool calls", f"{whole.calls:,} of {whole.asked_calls:,} that were asked for"))
    rows.append(
        (
            "generator's lag",
            f"p50 {milliseconds(figures.lag.p50.value)}, "
            f"p99 {milliseconds(figures.lag.p99.value)}, "
            f"longest {milliseconds(figures.lag.largest)}; "
            f"of it computing: p99 {milliseconds(figures.computing.p99.value)}",
        )
    )
    if figures.sent_late.count:
        late = figures.sent_late
        rows.append(
            (
                "sent late by",
                f"p50 {milliseconds(late.p50.value)}, p99 {milliseconds(late.p99.value)}",
            )
        )
    return rows


def latencies(figures: Figures, name: str) -> list[list[str]]:
    """Rows of one workload."""
    of_workload: WorkloadFigures = figures.workloads[name]
    title = name or "all requests"
    rows = [[title, *[""] * 7]]
    for attribute, words in LATENCY_NAMES.items():
        one: Distribution = getattr(of_workload, attribute)
        values = (one.mean, one.p50.value, one.p90.value, one.p95.value, one.p99.value, one.largest)
        cells = [f"{value:.4f}" if one.count else NONE for value in values]
        rows.append([f"  {words}", f"{one.count:,}", *cells])
    return rows


def cost(found: Cost) -> str:
    """Dollars measured beside those expected."""
    rows = [
        [
            one.phase,
            f"{one.tokens:,.0f}",
            number(one.mean_context_tokens, 0),
            number(one.gpu_seconds, 2),
            number(one.usd_per_million_tokens, 4),
            number(one.expected_usd_per_million_tokens, 4),
            times(one.times_expected),
        ]
        for one in found.phases
    ]
    rows.append(
        [
            "both",
            f"{found.tokens:,.0f}",
            "",
            number(found.gpu_seconds, 2),
            number(found.usd_per_million_tokens, 4),
            number(found.expected_usd_per_million_tokens, 4),
            times(found.times_expected),
        ]
    )
    header = ("cost", "tokens", "mean context", "GPU-s", "USD/M", "expected", "ratio")
    busy = (
        ""
        if found.utilisation is None
        else f"; steps ran {100 * found.utilisation:.0f} % of the time"
    )
    about = (
        f"{found.source} at {found.usd_per_hour:g} USD per GPU-hour"
        + (f", expected by {found.expected_by}" if found.expected_by else "")
        + f"{busy}. With idle time: {number(found.rented_usd_per_million_tokens, 4)} USD/M"
    )
    return table(header, rows) + "\n" + "\n".join(textwrap.wrap(about, WIDTH))


def check_cells(check: Check) -> list[str]:
    """Target, limit, measured, and whether it was kept."""
    sign = "at least" if check.at_least else "at most"
    name = f"{check.workload}: {check.name}" if check.workload else check.name
    said = {True: "kept", False: "MISSED", None: "no data"}[check.kept]
    limit, measured = in_unit(check, check.limit), in_unit(check, check.measured)
    return [name, f"{sign} {limit}", measured, said]


def in_unit(check: Check, value: float | None) -> str:
    """A value with its unit."""
    if value is None:
        return NONE
    return {
        "s": f"{value:.4g} s",
        "share": f"{100 * value:.1f} %",
        "USD": f"{value:.4g} USD",
        "x": f"{value:.3g}x",
        "/s": f"{value:.3g}/s",
    }[check.unit]


def share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else NONE


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms"


def number(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:,.{digits}f}"


def times(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}x"

"""A simulation's figures as text, 100 columns at most."""

from __future__ import annotations

from cost_model.tables import table
from loadtest.report import Percentiles, Report

KINDS = {
    "all": "first token, all requests",
    "first": "  first message of a conversation",
    "user": "  later message of the user",
    "tool": "  result of a tool",
}


def simulation(report: Report) -> str:
    """The figures of one run."""
    latencies = [_latency(KINDS.get(kind, kind), one) for kind, one in report.first_token_s.items()]
    latencies.append(_latency("between two tokens", report.inter_token_s))
    if report.retry.count:
        one = report.retry
        cells = [f"{100 * value:.0f} %" for value in (one.mean, one.p50, one.p90, one.p95, one.p99)]
        latencies.append(["error of retry-after", f"{one.count:,}", *cells, ""])
    header = ["seconds", "count", "mean", "p50", "p90", "p95", "p99", "longest"]
    return "\n\n".join(
        [
            f"{report.gpus} x {report.gpu}, {report.model}, {report.pages:,} pages; "
            f"{report.seconds:,.0f} s on the virtual clock, {report.steps:,} steps",
            table(("", ""), _totals(report), left=2).strip("\n"),
            table(header, latencies),
        ]
    )


def _totals(report: Report) -> list[tuple[str, str]]:
    refused = ", ".join(f"{number:,} {code}" for code, number in sorted(report.refused.items()))
    evicted = ", ".join(f"{pages:,} {name}" for name, pages in report.evictions.items())
    paid = report.dollars
    return [
        ("requests", f"{report.requests:,}, {report.completed:,} completed"),
        ("refused", refused or "none"),
        ("prompt tokens", f"{report.prompt_tokens:,} ({report.prompt_tokens_per_s:,.0f} a second)"),
        ("output tokens", f"{report.output_tokens:,} ({report.output_tokens_per_s:,.0f} a second)"),
        (
            "goodput",
            f"{report.goodput_tokens_per_s:,.0f} output tokens a second; "
            f"{100 * report.in_time:.1f} % kept {report.first_token_target_s:g} s and "
            f"{1000 * report.inter_token_target_s:g} ms",
        ),
        ("found in the cache", f"{100 * report.hit_rate:.1f} % of the prompt tokens"),
        (
            "computed again",
            f"{report.recomputed_tokens:,} of {report.computed_prompt_tokens:,} prompt tokens; "
            f"pre-warmed {report.pre_warmed_tokens:,}",
        ),
        ("evicted pages", f"{evicted}; {report.preemptions:,} preemptions"),
        (
            "utilisation",
            f"{100 * report.utilisation:.1f} % of the room in steps of the target's length; "
            f"a step ran {100 * report.busy:.1f} % of the time",
        ),
        (
            "USD",
            f"{paid.usd:,.2f} in all, {paid.per_thousand_requests:,.2f} per 1,000 requests",
        ),
        (
            "USD per million",
            f"{paid.per_million_output_tokens:,.3f} output tokens alone, "
            f"{paid.per_million_tokens:,.3f} prompt and output tokens",
        ),
        (
            "  at full load",
            f"{paid.full_load_per_million_computed_prompt_tokens:,.3f} computed prompt tokens, "
            f"{paid.full_load_per_million_output_tokens:,.3f} output tokens",
        ),
    ]


def _latency(name: str, one: Percentiles) -> list[str]:
    values = (one.mean, one.p50, one.p90, one.p95, one.p99, one.largest)
    return [name, f"{one.count:,}", *(f"{value:.3f}" for value in values)]

"""What a simulation looks like: latencies as distributions, load and pages over time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cost_model.plots import FIRST, INK, SECOND, SOFT, THIRD, styled
from loadtest.report import Report
from loadtest.simulator import Observed
from loadtest.studies import POLICIES, Run

BINS = 120
"""Of the time axis."""
KIND_COLORS = {"trace": FIRST, "first": SOFT, "user": SECOND, "tool": THIRD}
POLICY_COLORS = dict(zip(POLICIES, (SOFT, FIRST, SECOND), strict=True))
KIND_NAMES = {
    "trace": "requests",
    "first": "first message",
    "user": "later message",
    "tool": "tool result",
}


@styled
def simulation(observed: Observed, report: Report) -> Figure:
    """Four panels: first tokens, gaps between tokens, tokens per second, pages."""
    figure = Figure(figsize=(10.5, 6.4), layout="constrained")
    ((first, between), (rates, pages)) = figure.subplots(2, 2)
    _first_tokens(first, observed, report)
    _between(between, observed, report)
    _rates(rates, observed)
    _pages(pages, observed, report)
    figure.suptitle(
        f"{report.gpus} x {report.gpu}, {report.model}: {report.completed:,} requests, "
        f"{100 * report.hit_rate:.0f} % of the prompt tokens cached, "
        f"{report.dollars.per_million_tokens:.3f} USD per million tokens"
    )
    return figure


@styled
def retention(
    by_share: Sequence[Run], by_agents: Sequence[Run], unhelped: Sequence[Run], name: str
) -> Figure:
    """What is computed again, and how long a user waits, by cache size and by utilisation."""
    figure = Figure(figsize=(10.5, 6.4), layout="constrained")
    ((again, again_by), (wait, wait_by)) = figure.subplots(2, 2)
    again.set_title("computed again, by cache size")
    again_by.set_title("computed again, by utilisation")
    wait.set_title("first token of the user's next message, by cache size")
    wait_by.set_title("first token of the user's next message, by utilisation")
    for policy, color in POLICY_COLORS.items():
        shares = [one for one in by_share if one.policy == policy and one.cache_share <= 1.01]
        loads = [one for one in by_agents if one.policy == policy]
        plain = [one for one in unhelped if one.policy == policy]
        x = [one.cache_share for one in shares]
        used = [100 * one.utilisation for one in loads]
        again.plot(x, [o.recomputed_per_request for o in shares], "o-", color=color, label=policy)
        again.plot(
            [one.cache_share for one in plain],
            [one.recomputed_per_request for one in plain],
            ":",
            color=color,
            label=f"{policy}, {name}",
        )
        wait.plot(x, [one.user_first_token_s for one in shares], "o-", color=color)
        again_by.plot(used, [one.recomputed_per_request for one in loads], "o-", color=color)
        wait_by.plot(used, [one.user_first_token_s for one in loads], "o-", color=color)
    for axes in (again, again_by):
        axes.set_ylabel("tokens per request")
    for axes in (wait, wait_by):
        axes.set_ylabel("seconds, mean")
    for axes in (again, wait):
        axes.set_xlabel("pages, of the working set")
        axes.set_xlim(left=0)
    for axes in (again_by, wait_by):
        axes.set_xlabel("utilisation with room for all pages, %")
    for axes in (again, again_by, wait, wait_by):
        axes.set_ylim(bottom=0)
    again.legend(loc="upper right")
    return figure


def _first_tokens(axes: Axes, observed: Observed, report: Report) -> None:
    by_kind: dict[str, list[float]] = {}
    for one in observed.flights:
        if one.end_s >= 0 and one.arrival_s >= report.measured_from_s:
            by_kind.setdefault(one.request.kind, []).append(one.first_s - one.arrival_s)
    axes.set_title("time to the first token")
    for kind, seconds in sorted(by_kind.items()):
        _distribution(axes, seconds, KIND_COLORS[kind], KIND_NAMES[kind])
    axes.set_xscale("log")
    axes.set_xlabel("seconds")
    axes.set_ylabel("share of requests")
    if by_kind:
        axes.legend(loc="lower right")


def _between(axes: Axes, observed: Observed, report: Report) -> None:
    axes.set_title("time between two tokens")
    _distribution(axes, observed.gaps_s, FIRST, "gaps")
    axes.axvline(report.inter_token_target_s, color=SECOND, linestyle="--", label="target")
    axes.set_xlabel("seconds")
    axes.set_ylabel("share of gaps")
    axes.set_xlim(0, 3 * report.inter_token_target_s)
    axes.legend(loc="lower right")


def _rates(axes: Axes, observed: Observed) -> None:
    """Tokens are put where their request got its first token, and where it ended."""
    done = [one for one in observed.flights if one.end_s >= 0]
    axes.set_title("tokens per second")
    edges = np.linspace(0, max(observed.end_s, 1e-9), BINS + 1)
    width_s = edges[1] - edges[0]
    series = (
        ("prompt", [(one.first_s, one.request.prompt_tokens) for one in done], FIRST),
        (
            "prompt, computed",
            [(one.first_s, one.request.prompt_tokens - one.cached_tokens) for one in done],
            SECOND,
        ),
        ("output", [(one.end_s, one.generated_tokens) for one in done], THIRD),
    )
    for name, points, color in series:
        times, tokens = zip(*points, strict=True) if points else ((), ())
        sums, _ = np.histogram(times, bins=edges, weights=tokens)
        axes.step(edges[:-1], sums / width_s, where="post", color=color, label=name)
    axes.set_xlabel("seconds")
    axes.set_ylim(0, 1.35 * axes.get_ylim()[1])
    axes.legend(loc="upper right", ncols=3)


def _pages(axes: Axes, observed: Observed, report: Report) -> None:
    times = [time for time, _, _ in observed.pages]
    live = np.array([live for _, live, _ in observed.pages])
    idle = np.array([idle for _, _, idle in observed.pages])
    axes.set_title("pages")
    axes.fill_between(times, live, color=FIRST, alpha=0.8, linewidth=0, label="live")
    axes.fill_between(times, live, live + idle, color=FIRST, alpha=0.3, linewidth=0, label="idle")
    axes.axhline(report.pages, color=INK, linewidth=0.8, label="all")
    axes.set_xlabel("seconds")
    axes.set_ylim(bottom=0)
    axes.legend(loc="center right")


def _distribution(axes: Axes, values: Iterable[float], color: str, label: str) -> None:
    """The share of the values up to each, in at most 500 points."""
    given = np.sort(np.fromiter(values, dtype=np.float64))
    if given.size:
        shares = np.linspace(0, 1, min(500, given.size))
        axes.plot(np.quantile(given, shares), shares, color=color, label=label)

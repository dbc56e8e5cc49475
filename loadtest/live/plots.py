"""Plots of a load test, as SVG for a page."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from cost_model.costs import dollars
from cost_model.plots import FIRST, INK, SECOND, SOFT, STYLE, THIRD, styled
from loadtest.live.figures import ALL, Figures, gaps_s
from loadtest.live.samples import Sample
from loadtest.live.scrape import Counts
from loadtest.live.window import concurrency

SIZE = (5.2, 3.0)
POINTS = 400
"""Of a curve at most: a page is read, not searched."""
SLICES = 60
"""Of the time axis at most; each is SLICE_S long at least."""
SLICE_S = 2.0
SHORTEST_S = 1e-5
"""What is shorter is drawn there: pieces of one read have no gap, and a logarithm no zero."""
COLORS = (FIRST, SECOND, THIRD, "#aa4499", "#999933", INK)


def svg(figure: Figure) -> str:
    """Returns a figure as an SVG element, without a date or an XML head."""
    text = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None})
    whole = text.getvalue()
    return whole[whole.index("<svg") :]


@styled
def first_tokens(figures: Figures, samples: Sequence[Sample]) -> Figure:
    """The share of requests that had their first token by then."""
    return _shares(
        figures,
        samples,
        lambda group: np.array([one.first_token_s for one in group if one.first_s >= 0]),
        "time to first token, s",
        figures.limits.get("first_token_s"),
    )


@styled
def gaps(figures: Figures, samples: Sequence[Sample]) -> Figure:
    """The share of gaps between chunks that were shorter."""
    return _shares(figures, samples, gaps_s, "gap between chunks, s", None)


@styled
def per_token(figures: Figures, samples: Sequence[Sample]) -> Figure:
    """The share of requests whose tokens came at least so fast."""

    def values(group: Sequence[Sample]) -> NDArray[np.float64]:
        times = [one.time_per_output_token_s for one in group]
        return np.array([one for one in times if one is not None])

    limit = figures.limits.get("time_per_output_token_s")
    return _shares(figures, samples, values, "time per output token, s", limit)


@styled
def load_over_time(figures: Figures, samples: Sequence[Sample]) -> Figure:
    """Requests in flight, and the window that counts."""
    figure, axes = _axes()
    times, in_flight = concurrency(samples, ended_s=figures.run_s)
    axes.step(times, in_flight, where="post", color=FIRST, linewidth=1)
    _mark_window(axes, figures)
    axes.set_ylabel("requests in flight")
    axes.set_xlabel("seconds")
    axes.set_ylim(bottom=0)
    return figure


@styled
def rates(figures: Figures, samples: Sequence[Sample]) -> Figure:
    """Prompt tokens where their first token came, output tokens where they came."""
    figure, axes = _axes()
    slices = max(1, min(SLICES, int(figures.run_s / SLICE_S)))
    edges = np.linspace(0, max(figures.run_s, 1e-9), slices + 1)
    width_s = edges[1] - edges[0]
    output, prompt = np.zeros(slices), np.zeros(slices)
    for one in samples:
        if one.chunks_s:
            times = np.frombuffer(one.chunks_s)
            output += np.histogram(times, edges)[0] * (one.output_tokens / len(times))
            prompt += np.histogram([one.first_s], edges)[0] * one.prompt_tokens
    axes.step(edges[:-1], prompt / width_s, where="post", color=SECOND, label="prompt")
    axes.step(edges[:-1], output / width_s, where="post", color=FIRST, label="output")
    _mark_window(axes, figures)
    axes.set_yscale("symlog", linthresh=10)
    axes.set_ylabel("tokens per second")
    axes.set_xlabel("seconds")
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right", ncols=2)
    return figure


@styled
def cost_over_time(figures: Figures, scrapes: Sequence[Counts], price: float | None) -> Figure:
    """USD per million computed tokens between two looks at the server, measured and expected."""
    figure, axes = _axes()
    step = max(min(2, len(scrapes) // 2), len(scrapes) // SLICES)
    chosen = list(scrapes[::step])
    times, measured, expected = [], [], []
    for before, after in pairwise(chosen):
        tokens = _grown(before, after, "computed_tokens")
        if tokens > 0:
            own = after.usd_per_hour
            usd_per_hour = own if price is None else price
            times.append((before.at_s + after.at_s) / 2)
            seconds = _grown(before, after, "gpu_seconds")
            measured.append(dollars(seconds, usd_per_hour) / tokens * 1e6)
            factor = usd_per_hour / own if own else 0.0
            expected.append(_grown(before, after, "expected_usd") * factor / tokens * 1e6)
    axes.plot(times, measured, color=FIRST, label="measured")
    axes.plot(times, expected, color=SECOND, linestyle="--", label="cost model")
    _mark_window(axes, figures)
    if any(usd > 0 for usd in measured):
        axes.set_yscale("log")
    axes.set_ylabel("USD per million tokens")
    axes.set_xlabel("seconds")
    axes.legend(loc="best")
    return figure


def _shares(
    figures: Figures,
    samples: Sequence[Sample],
    values: Callable[[Sequence[Sample]], NDArray[np.float64]],
    label: str,
    limit: float | None,
) -> Figure:
    figure, axes = _axes()
    window = figures.window
    inside = [one for one in samples if window.holds(one.sent_s) and one.outcome == "answered"]
    names = [name for name in figures.workloads if name != ALL]
    for name, color in zip(names, COLORS, strict=False):
        found = np.sort(values([one for one in inside if one.workload == name]))
        if found.size:
            shares = np.linspace(0, 1, min(POINTS, found.size))
            shown = np.maximum(np.quantile(found, shares), SHORTEST_S)
            axes.plot(shown, 100 * shares, color=color, label=name)
    if limit is not None:
        axes.axvline(limit, color=SOFT, linestyle="--", linewidth=1)
    if axes.lines:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=10))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label)
    axes.set_ylabel("% at most so long")
    axes.set_ylim(0, 102)
    if axes.lines and axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right")
    return figure


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    return figure, figure.subplots()


def _mark_window(axes: Axes, figures: Figures) -> None:
    window = figures.window
    axes.axvspan(window.begin_s, window.end_s, color=SOFT, alpha=0.12, linewidth=0)
    axes.set_xlim(0, max(figures.run_s, 1e-9))


def _grown(before: Counts, after: Counts, name: str) -> float:
    return sum(
        getattr(after.phases[phase], name) - getattr(before.phases[phase], name)
        for phase in after.phases
    )

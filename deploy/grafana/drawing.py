"""What panels look like: lines, areas, numbers and heat maps on cards, in colours of our own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

LEGEND_ENTRIES = 8
PAGE, CARD, EDGE, TEXT, MUTED = "#e9ecf1", "#ffffff", "#d9dce1", "#1f2530", "#6b7280"
LINES = (
    *("#3274d9", "#e0752d", "#37872d", "#c4162a", "#8f3bb8", "#0f9aa0", "#b8860b", "#6b7280"),
    *("#1f60c4", "#fa6400", "#56a64b", "#e02f44"),
)


GAP_INCHES, CORNER_INCHES = 0.05, 0.12
LEFT_INCHES, RIGHT_INCHES, HEAD_INCHES, TITLE_INCHES = 0.58, 0.18, 0.46, 0.18
FOOT_INCHES = {"timeseries": 0.6, "stat": 0.1, "heatmap": 0.38}
"""Below the axes, for times and a legend."""


class Series(NamedTuple):
    """One line: what it is called, its times in seconds since the epoch, its values."""

    legend: str
    labels: dict[str, str]
    at: list[float]
    values: list[float]


def card(figure: Figure, panel: dict[str, Any], place: tuple[float, float, float, float]) -> Axes:
    """Returns the axes of a panel, on a card with its title.

    place: left, top, width and height of the card, in shares of the figure.
    """
    across, down = 1 / figure.get_figwidth(), 1 / figure.get_figheight()
    left, top, wide, tall = place
    figure.add_artist(
        Rectangle(
            (left + GAP_INCHES * across, top - tall + GAP_INCHES * down),
            wide - 2 * GAP_INCHES * across,
            tall - 2 * GAP_INCHES * down,
            facecolor=CARD,
            edgecolor=EDGE,
            linewidth=0.8,
            zorder=0,
        )
    )
    foot = FOOT_INCHES[panel["type"]]
    axes = figure.add_axes(
        (
            left + LEFT_INCHES * across,
            top - tall + foot * down,
            wide - (LEFT_INCHES + RIGHT_INCHES) * across,
            tall - (HEAD_INCHES + foot) * down,
        ),
        facecolor=CARD,
    )
    # In the card's own corner, wherever the axes begin.
    inside = axes.get_position()
    corner = (
        (CORNER_INCHES - LEFT_INCHES) * across / inside.width,
        1 + TITLE_INCHES * down / inside.height,
    )
    style: dict[str, Any] = {"size": 8, "color": TEXT, "weight": "bold"}
    axes.set_title(panel["title"], loc="left", x=corner[0], y=corner[1], pad=0, **style)
    axes.tick_params(labelsize=6.5, colors=MUTED, length=0, which="both")
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    return axes


def written(value: float, unit: str) -> str:
    """Returns a number with its unit, as short as a panel needs it."""
    if not math.isfinite(value):
        return "no data"
    if unit == "percentunit":
        return f"{value:.1%}"
    if unit == "s":
        return f"{value * 1e3:.3g} ms" if abs(value) < 1 else f"{value:.3g} s"
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return _with_unit(f"{value / size:.3g}{prefix}", unit)
    return _with_unit(f"{value:.3g}", unit)


def _with_unit(number: str, unit: str) -> str:
    if unit == "currencyUSD":
        return f"${number}"
    suffix = unit.removeprefix("suffix:") if unit.startswith("suffix:") else ""
    return f"{number}{suffix}"


def _unit(panel: dict[str, Any]) -> str:
    return str(panel["fieldConfig"]["defaults"].get("unit", "none"))


def _time_axis(axes: Axes, series: Sequence[Series]) -> None:
    moments = [moment for one in series for moment in one.at]
    if moments:
        # A single moment gets some time around it.
        axes.set_xlim(min(moments), max(max(moments), min(moments) + 1))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda second, _: datetime.fromtimestamp(second).strftime("%H:%M:%S"))
    )


def lines(axes: Axes, panel: dict[str, Any], series: Sequence[Series]) -> None:
    custom = panel["fieldConfig"]["defaults"]["custom"]
    if custom.get("stacking", {}).get("mode") == "normal" and series:
        every = sorted({moment for one in series for moment in one.at})
        values = np.array([np.interp(every, one.at, np.nan_to_num(one.values)) for one in series])
        names = [one.legend for one in series]
        axes.stackplot(every, values, labels=names, colors=LINES, alpha=0.75, linewidth=0)
    else:
        axes.set_prop_cycle(color=LINES)
        for one in series:
            axes.plot(one.at, one.values, label=one.legend, linewidth=1.1)
    if custom.get("scaleDistribution", {}).get("type") == "log":
        axes.set_yscale("log")
    else:
        top = axes.dataLim.y1 if series else 0.0
        axes.set_ylim(0, 1.15 * top if math.isfinite(top) and top > 0 else 1)
    unit = _unit(panel)
    if unit.startswith("suffix:"):
        # Once is enough, and beside every number there is no room.
        told = unit.removeprefix("suffix:").strip()
        style: dict[str, Any] = {"ha": "right", "va": "bottom", "size": 6.5, "color": MUTED}
        axes.text(1, 1.03, told, transform=axes.transAxes, **style)
        unit = "none"
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value, unit)))
    axes.grid(color=EDGE, linewidth=0.5)
    axes.set_axisbelow(True)
    _time_axis(axes, series)
    if len(series) > 1:
        _legend(axes, series)


def _legend(axes: Axes, series: Sequence[Series]) -> None:
    """Below the axes, from the card's left edge on."""
    few = len(series) <= LEGEND_ENTRIES
    shown = [one.legend for one in series if few or any(value > 0 for value in one.values)]
    if not shown:
        return
    figure, inside = axes.figure, axes.get_position()
    assert isinstance(figure, Figure)
    wide_inches = inside.width * figure.get_figwidth() + LEFT_INCHES
    handles, legends = axes.get_legend_handles_labels()
    named = dict(zip(legends, handles, strict=True))
    axes.legend(
        [named[legend] for legend in shown],
        shown,
        fontsize=6,
        loc="upper left",
        bbox_transform=figure.transFigure,
        bbox_to_anchor=(
            inside.x0 - (LEFT_INCHES - CORNER_INCHES) / figure.get_figwidth(),
            inside.y0 - 0.17 / figure.get_figheight(),
        ),
        borderpad=0,
        labelspacing=0.3,
        ncols=max(1, int(wide_inches / (0.3 + 0.05 * max(map(len, shown))))),
        frameon=False,
        labelcolor=TEXT,
        handlelength=1.2,
        columnspacing=1.2,
    )


def number(axes: Axes, panel: dict[str, Any], series: Sequence[Series]) -> None:
    axes.set_axis_off()
    finite = [value for one in series for value in one.values if math.isfinite(value)]
    text = written(finite[-1] if finite else math.nan, _unit(panel))
    axes.text(0.4, 0.55, text, ha="center", va="center", size=17, weight="bold", color=LINES[0])


def heatmap(axes: Axes, panel: dict[str, Any], series: Sequence[Series]) -> None:
    """Buckets are cumulative: each row is what came beyond the edge below."""
    ordered = sorted(series, key=lambda one: float(one.labels["le"]))
    if not ordered:
        return
    length = min(len(one.values) for one in ordered)
    moments = ordered[0].at[-length:]
    cumulative = np.nan_to_num(np.array([one.values[-length:] for one in ordered]))
    cells = np.diff(cumulative, axis=0, prepend=0)
    axes.imshow(
        np.ma.masked_less_equal(cells, 0),
        aspect="auto",
        origin="lower",
        cmap="YlGnBu",
        interpolation="nearest",
        extent=(moments[0], max(moments[-1], moments[0] + 1), 0, len(ordered)),
    )
    unit, every = _unit(panel), max(1, len(ordered) // 6)
    places = range(0, len(ordered), every)
    labels = [_edge(float(ordered[place].labels["le"]), unit) for place in places]
    axes.set_yticks([place + 0.5 for place in places], labels)
    _time_axis(axes, [ordered[0]._replace(at=moments)])


def _edge(edge: float, unit: str) -> str:
    return f"≤ {written(edge, unit)}" if math.isfinite(edge) else "beyond"

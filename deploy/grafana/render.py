"""Draws the boards from a Prometheus, without a Grafana.

    python -m deploy.grafana.render --prometheus http://127.0.0.1:9090 --minutes 10 docs/boards

The committed JSON is what is read, so a panel that is missing here is missing there. Lines, areas,
numbers and heat maps stand where Grafana puts them; colours and fonts are our own.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from deploy.grafana.generate import FOLDER

POINTS = 240
"""Along the time axis."""
COLUMN_INCHES, ROW_INCHES = 0.62, 0.34
"""Of one cell of Grafana's grid."""
FEWEST_SCRAPES = 4
"""That a rate is taken over."""
LEGEND_ENTRIES = 8


class Series(NamedTuple):
    """One line: what it is called, its times in seconds since the epoch, its values."""

    legend: str
    labels: dict[str, str]
    at: list[float]
    values: list[float]


Ask = Callable[[str], list[dict[str, Any]]]
"""(query) -> the result of a range query."""


def prometheus(url: str, minutes: float, scrape_s: float) -> Ask:
    """Returns what asks a Prometheus about its last minutes; variables of boards are filled in."""
    end_s = time.time()
    step_s = max(minutes * 60 / POINTS, 1.0)
    variables = {
        "$__rate_interval": f"{max(FEWEST_SCRAPES * scrape_s, step_s):.0f}s",
        "$model": ".+",
        "$instance": ".+",
    }

    def ask(query: str) -> list[dict[str, Any]]:
        for name, value in variables.items():
            query = query.replace(name, value)
        parameters = {
            "query": query,
            "start": end_s - minutes * 60,
            "end": end_s,
            "step": step_s,
        }
        address = f"{url}/api/v1/query_range?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(address, timeout=60) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found

    return ask


def series_of(panel: dict[str, Any], ask: Ask) -> list[Series]:
    """Returns a panel's lines, named as its legends say."""
    found = []
    for target in panel["targets"]:
        for one in ask(target["expr"]):
            legend = target.get("legendFormat", "")
            for label, value in one["metric"].items():
                legend = legend.replace("{{" + label + "}}", value)
            at = [float(second) for second, _ in one["values"]]
            values = [float(value) for _, value in one["values"]]
            found.append(Series(legend, one["metric"], at, values))
    return found


def draw(board: dict[str, Any], ask: Ask) -> Figure:
    """Returns the whole board as one figure."""
    panels = board["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) + 1
    width, height = 24 * COLUMN_INCHES, rows * ROW_INCHES
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    figure.suptitle(board["title"], x=0.01, y=1 - 0.3 / rows, ha="left", weight="bold")
    for panel in panels:
        place = panel["gridPos"]
        left, top = place["x"] / 24, 1 - (place["y"] + 1) / rows
        if panel["type"] == "row":
            figure.text(left + 0.01, top - 0.7 / rows, panel["title"], color="#555555", size=9)
            continue
        tall = place["h"] / rows
        axes = figure.add_axes(
            (left + 0.035, top - tall + 1.3 / rows, place["w"] / 24 - 0.05, tall - 2.4 / rows)
        )
        axes.set_title(panel["title"], size=8, loc="left")
        kinds = {"timeseries": _lines, "stat": _number, "heatmap": _heatmap}
        kinds[panel["type"]](axes, panel, series_of(panel, ask))
    return figure


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
    axes.tick_params(labelsize=6)


def _lines(axes: Axes, panel: dict[str, Any], series: Sequence[Series]) -> None:
    custom = panel["fieldConfig"]["defaults"]["custom"]
    if custom.get("stacking", {}).get("mode") == "normal" and series:
        every = sorted({moment for one in series for moment in one.at})
        values = np.array([np.interp(every, one.at, np.nan_to_num(one.values)) for one in series])
        axes.stackplot(every, values, labels=[one.legend for one in series], alpha=0.7)
    else:
        for one in series:
            axes.plot(one.at, one.values, label=one.legend, linewidth=1)
    if custom.get("scaleDistribution", {}).get("type") == "log":
        axes.set_yscale("log")
    else:
        axes.margins(y=0.2)
        axes.set_ylim(bottom=0)
    unit = _unit(panel)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value, unit)))
    axes.grid(alpha=0.3)
    _time_axis(axes, series)
    few = len(series) <= LEGEND_ENTRIES
    shown = [one for one in series if few or any(value > 0 for value in one.values)]
    if len(series) > 1 and shown:
        handles, legends = axes.get_legend_handles_labels()
        named = dict(zip(legends, handles, strict=True))
        wanted = [one.legend for one in shown]
        axes.legend(
            [named[legend] for legend in wanted],
            wanted,
            fontsize=5,
            loc="upper left",
            ncols=2,
            framealpha=0.6,
        )


def _number(axes: Axes, panel: dict[str, Any], series: Sequence[Series]) -> None:
    axes.set_axis_off()
    finite = [value for one in series for value in one.values if math.isfinite(value)]
    text = written(finite[-1] if finite else math.nan, _unit(panel))
    axes.text(0.5, 0.45, text, ha="center", va="center", size=15, weight="bold")


def _heatmap(axes: Axes, panel: dict[str, Any], series: Sequence[Series]) -> None:
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
        cmap="viridis",
        extent=(moments[0], max(moments[-1], moments[0] + 1), 0, len(ordered)),
    )
    unit, every = _unit(panel), max(1, len(ordered) // 6)
    places = range(0, len(ordered), every)
    labels = [_edge(float(ordered[place].labels["le"]), unit) for place in places]
    axes.set_yticks([place + 0.5 for place in places], labels)
    _time_axis(axes, [ordered[0]._replace(at=moments)])


def _edge(edge: float, unit: str) -> str:
    return f"≤ {written(edge, unit)}" if math.isfinite(edge) else "beyond"


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes one PNG per board."""
    parser = argparse.ArgumentParser(description="Draw the boards from a Prometheus.")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", metavar="URL")
    parser.add_argument("--minutes", type=float, default=10.0, help="how far back (default: 10)")
    parser.add_argument("--scrape-s", type=float, default=5.0, help="scrape interval (default: 5)")
    asked = parser.parse_args(arguments)
    asked.folder.mkdir(parents=True, exist_ok=True)
    ask = prometheus(asked.prometheus, asked.minutes, asked.scrape_s)
    for file in sorted(FOLDER.glob("*.json")):
        figure = draw(json.loads(file.read_text()), ask)
        picture = asked.folder / f"{file.stem}.png"
        figure.savefig(picture, dpi=90, metadata={"Software": None})
        print(picture)


if __name__ == "__main__":
    main()

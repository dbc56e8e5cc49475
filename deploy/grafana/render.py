"""Draws the boards from a Prometheus, without a Grafana.

    python -m deploy.grafana.render --prometheus http://127.0.0.1:9090 --minutes 10 docs/boards

The committed JSON is what is read, so a panel that is missing here is missing there. Lines, areas,
numbers and heat maps stand where Grafana puts them; colours and fonts are our own.
"""

from __future__ import annotations

import argparse
import json
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from deploy.grafana.drawing import MUTED, PAGE, TEXT, Series, card, heatmap, lines, number
from deploy.grafana.generate import FOLDER

POINTS = 240
"""Along the time axis."""
COLUMN_INCHES, ROW_INCHES = 0.52, 0.3
"""Of one cell of Grafana's grid."""
DOTS_PER_INCH = 100
PALETTE_COLOURS = 256
"""Of a picture: more make it several times as large, and nobody sees the difference."""
FEWEST_SCRAPES = 4
"""That a rate is taken over."""
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
    figure = Figure(figsize=(width, height), facecolor=PAGE)
    FigureCanvasAgg(figure)
    figure.text(0.006, 1 - 0.85 / rows, board["title"], size=13, weight="bold", color=TEXT)
    for panel in panels:
        place = panel["gridPos"]
        left, top = place["x"] / 24, 1 - (place["y"] + 1) / rows
        if panel["type"] == "row":
            figure.text(left + 0.006, top - 0.75 / rows, panel["title"], size=10, color=MUTED)
            continue
        axes = card(figure, panel, (left, top, place["w"] / 24, place["h"] / rows))
        kinds = {"timeseries": lines, "stat": number, "heatmap": heatmap}
        kinds[panel["type"]](axes, panel, series_of(panel, ask))
    return figure


def save(figure: Figure, picture: Path) -> None:
    """Writes a PNG that is small enough to be committed."""
    drawn = BytesIO()
    figure.savefig(drawn, dpi=DOTS_PER_INCH, facecolor=PAGE)
    with Image.open(drawn) as image:
        few = image.convert("RGB").quantize(
            PALETTE_COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
        )
        few.save(picture, optimize=True)


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
        save(figure, picture)
        print(picture)


if __name__ == "__main__":
    main()

"""deploy.grafana.render: a picture of each board, from what a Prometheus would answer."""

from __future__ import annotations

import json
import math
import re
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from deploy.grafana.drawing import Series, written
from deploy.grafana.render import draw, main, prometheus, series_of
from tests.deploy.promql import boards

BEGIN_S, POINTS = 1_700_000_000, 20
DOCS = Path(__file__).parents[2] / "docs"
LARGEST_BYTES = 150_000
"""Of a picture: five are committed, anew whenever the boards change."""


def answer(query: str) -> list[dict[str, Any]]:
    """Two lines for any query, three buckets for one that is grouped by them."""
    values = ["1", "2"]
    label = "phase"
    if re.search(r"sum by \(le", query) and not query.startswith("histogram_quantile"):
        label, values = "le", ["0.1", "1.0", "+Inf"]
    return [
        {
            "metric": {label: value},
            "values": [[BEGIN_S + 5 * n, str(place + n)] for n in range(POINTS)],
        }
        for place, value in enumerate(values)
    ]


@pytest.mark.parametrize("name", list(boards()))
def test_every_panel_is_drawn(name: str) -> None:
    board = boards()[name]
    asked: list[str] = []

    def ask(query: str) -> list[dict[str, Any]]:
        asked.append(query)
        return answer(query)

    figure = draw(board, ask)
    figure.canvas.draw()
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert [axes.get_title("left") for axes in figure.axes] == [p["title"] for p in panels]
    assert asked == [target["expr"] for panel in panels for target in panel["targets"]]
    assert all(axes.lines or axes.collections or axes.images or axes.texts for axes in figure.axes)


def test_a_board_without_data_is_drawn_too() -> None:
    figure = draw(boards()["overview.json"], lambda query: [])
    figure.canvas.draw()
    assert any(text.get_text() == "no data" for axes in figure.axes for text in axes.texts)


@pytest.mark.parametrize("name", list(boards()))
def test_a_single_moment_is_drawn_too(name: str) -> None:
    def ask(query: str) -> list[dict[str, Any]]:
        return [one | {"values": one["values"][:1]} for one in answer(query)]

    draw(boards()[name], ask).canvas.draw()


def test_lines_are_named_by_their_legend() -> None:
    panel = {"targets": [{"expr": "x", "legendFormat": "{{phase}} predicted"}]}
    first, second = series_of(panel, answer)
    assert isinstance(first, Series)
    assert (first.legend, second.legend) == ("1 predicted", "2 predicted")
    assert first.values == [float(n) for n in range(POINTS)]


def test_the_pictures_in_the_docs_are_of_every_board() -> None:
    stems = {Path(name).stem for name in boards()}
    pictures = {file.stem: file.stat().st_size for file in (DOCS / "boards").glob("*.png")}
    assert pictures.keys() == stems and max(pictures.values()) < LARGEST_BYTES
    shown = re.findall(r"!\[[^\]]+\]\(boards/(\w+)\.png\)", (DOCS / "operations.md").read_text())
    assert sorted(shown) == sorted(stems)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0213, "s", "21.3 ms"),
        (2.5, "s", "2.5 s"),
        (0.981, "percentunit", "98.1%"),
        (0.11, "currencyUSD", "$0.11"),
        (3.2e9, "bytes", "3.2G"),
        (1234, "suffix: tok/s", "1.23k tok/s"),
        (7, "none", "7"),
        (math.nan, "none", "no data"),
    ],
)
def test_numbers(value: float, unit: str, text: str) -> None:
    assert written(value, unit) == text


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    """Answers like a Prometheus, and keeps what it was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parameters = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
            asked.append(parameters)
            body = json.dumps({"data": {"result": answer(parameters["query"])}}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    asked: list[dict[str, str]] = []
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.asked = asked  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_variables_are_filled_in(server: HTTPServer) -> None:
    ask = prometheus(f"http://127.0.0.1:{server.server_port}", minutes=10, scrape_s=5)
    ask('rate(x{model_name=~"$model",instance=~"$instance"}[$__rate_interval])')
    (parameters,) = server.asked  # type: ignore[attr-defined]
    assert parameters["query"] == 'rate(x{model_name=~".+",instance=~".+"}[20s])'
    assert float(parameters["end"]) - float(parameters["start"]) == pytest.approx(600)


def test_the_command_writes_a_picture_of_each_board(server: HTTPServer, tmp_path: Path) -> None:
    main([str(tmp_path), "--prometheus", f"http://127.0.0.1:{server.server_port}"])
    pictures = {file.stem: file.read_bytes() for file in tmp_path.iterdir()}
    assert pictures.keys() == {Path(name).stem for name in boards()}
    for picture in pictures.values():
        assert picture.startswith(b"\x89PNG") and len(picture) < LARGEST_BYTES

"""The plots: valid files, the same every time, that show the numbers; and the figure's corners."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread
from matplotlib.path import Path as Line
from matplotlib.transforms import Affine2D

from cost_model import answers, cli, plots
from cost_model.costs import usd_per_million
from cost_model.figure3 import POSITIONS, PRICE, curves
from cost_model.model import Phase
from cost_model.paper import Paper
from cost_model.presets import choose
from cost_model.reproduction import models_of_figure
from cost_model.shape import V32
from cost_model.trajectory import ToolLoop

ROOT = Path(__file__).parents[2]
DRAWN = [
    "figure3 --positions 0",
    "request --prompt 3000 --cached 1000 --output 200 --preset roofline",
    "request --prompt 0 --output 0",
    "trajectory --steps 30",
    "compare v3.1 v3.2",
    "compare v3.2 v3.2",
    "capacity --gpus 16 --context 65536",
]


@pytest.mark.parametrize("words", DRAWN)
def test_a_plot_is_a_valid_file_and_the_same_every_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    before = dict(matplotlib.rcParams)
    content = {}
    for name in ("one.png", "two.png", "one.svg", "two.svg"):
        file = tmp_path / name
        assert cli.main([*words.split(), "--plot", str(file), "--json"]) == 0
        content[name] = file.read_bytes()
        assert capsys.readouterr().err == f"drawn: {file}\n"
    assert content["one.png"] == content["two.png"]
    assert content["one.svg"] == content["two.svg"]
    pixels = imread(tmp_path / "one.png")
    height, width, _ = pixels.shape
    assert 800 <= width <= 1600 and 300 <= height <= 1000
    assert len(np.unique(pixels.reshape(-1, 4), axis=0)) > 10
    assert all(10_000 < len(content[name]) < 200_000 for name in ("one.png", "one.svg"))
    root = ElementTree.fromstring(content["one.svg"])
    assert root.tag.endswith("svg") and float(root.get("viewBox", "").split()[2]) > 600
    assert dict(matplotlib.rcParams) == before


def test_figure3_draws_the_vertices_and_every_preset() -> None:
    presets = {name: models_of_figure(name) for name in ("paper", "roofline")}
    figure = plots.figure3(presets)
    for axes, phase in zip(figure.axes[:2], ("prefill", "decode"), strict=True):
        wanted = [curve for curve in curves().values() if curve.phase == phase]
        markers = [line for line in axes.lines if line.get_marker() == "o"]
        drawn = [tuple(map(tuple, line.get_xydata())) for line in markers]
        assert drawn == [curve.vertices for curve in wanted]
        assert len(axes.lines) == len(wanted) * (2 + len(presets))
    assert {text.get_text() for axes in figure.axes for text in axes.texts} == {
        "knee at 6,680",
        "knee at 2,048",
    }


def test_the_errors_shown_are_the_largest_there_are() -> None:
    figure = plots.figure3({"paper": models_of_figure("paper")})
    bottom = figure.axes[3]
    assert max(np.abs(line.get_ydata()).max() for line in bottom.lines) == pytest.approx(
        0.92, abs=0.005
    )


def test_bars_add_up_to_the_request() -> None:
    chosen = choose("roofline")
    answer = answers.request(chosen, 5000, 1000, 300)
    (axes,) = plots.request(answer, chosen.about).axes
    assert sum(bar.get_width() for bar in axes.patches) == pytest.approx(answer.usd)


def test_bars_add_up_to_the_loop() -> None:
    chosen = choose("paper")
    answer = answers.trajectory(chosen, ToolLoop(steps=40))
    bars, lines = plots.trajectory(answer, chosen.about).axes
    for column, (policy, line) in enumerate(
        zip(answer.policies.values(), lines.lines, strict=True)
    ):
        stacked = [
            bar for bar in bars.patches if round(bar.get_x() + bar.get_width() / 2) == column
        ]
        assert sum(bar.get_height() for bar in stacked) == pytest.approx(policy.usd)
        assert np.asarray(line.get_ydata())[-1] == pytest.approx(policy.usd)


def test_the_pages_figure_is_todays(tmp_path: Path) -> None:
    file = tmp_path / "figure3.png"
    assert cli.main(["figure3", "--plot", str(file)]) == 0
    page = ROOT / "docs" / "figure3.png"
    assert page.stat().st_size < 200_000
    drawn, shown = imread(file), imread(page)
    assert drawn.shape == shown.shape
    # Another build of the font renderer may shade a glyph's edge differently.
    assert np.abs(drawn - shown).mean() < 1e-3


@pytest.mark.parametrize(
    ("phase", "top", "corner"), [("prefill", 0.7, 6747), ("decode", 2.4, 2105)]
)
def test_the_corners_left_out_are_the_plotting_programs(
    phase: Phase, top: float, corner: int
) -> None:
    # The figure's axes are 365.38 x 280.24 points; its line is simplified by matplotlib's rule,
    # which keeps a vertex only where the line has left the last one by a ninth of a point.
    positions = np.arange(POSITIONS)
    usd = usd_per_million(Paper(V32), phase, positions, PRICE)
    line = Line(np.column_stack([positions, usd]))
    line.should_simplify, line.simplify_threshold = True, 1 / 9
    on_page = Affine2D().scale(365.38 / POSITIONS, 280.24 / top)
    simplified = line.cleaned(transform=on_page, simplify=True)
    kept = on_page.inverted().transform(simplified.vertices[1])
    assert kept[0] == pytest.approx(corner, abs=5)
    assert kept[0] - {"prefill": 6680, "decode": 2048}[phase] > 50
    drawn = curves()[f"{phase} V3.2"].vertices[1]
    assert kept[1] == pytest.approx(drawn[1], rel=1e-4)

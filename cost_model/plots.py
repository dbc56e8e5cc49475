"""The plots of `winnow cost`. The same question draws the same file, byte for byte.

Nothing here goes through pyplot, and settings hold while a function runs only, so that a program
that draws for itself is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, ParamSpec

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cost_model.answers import Comparison, Request, Trajectory
from cost_model.capacity import Capacity
from cost_model.costs import usd_per_million
from cost_model.errors import CostError
from cost_model.figure3 import POSITIONS, PRICE, Curve, curves
from cost_model.inverse import knees
from cost_model.model import PHASES, CostModel, Phase
from cost_model.trajectory import POLICIES
from cost_model.work import FloatArray

Arguments = ParamSpec("Arguments")

DOTS_PER_INCH = 120
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "svg.hashsalt": "winnow",  # else the ids in the file are random
}
INK, SOFT = "#333333", "#8a8a8a"
FIRST, SECOND, THIRD = "#4477aa", "#cc6633", "#228833"
MODEL_COLORS = {"v3.1": FIRST, "v3.2": SECOND}
POLICY_COLORS = dict(zip(POLICIES, (FIRST, SECOND, THIRD), strict=True))
PRESET_LINES: dict[str, Literal["-", "--", ":"]] = {"paper": "-", "roofline": "--", "measured": ":"}
COMPONENT_COLORS = {
    "fixed": "#bbbbbb",
    "attention_projections": "#88ccee",
    "indexer_projections": "#44aa99",
    "dense_mlp": "#999933",
    "router": "#666666",
    "routed_experts": "#ddcc77",
    "shared_experts": "#bb9955",
    "head": "#117733",
    "core_attention": "#332288",
    "indexer": "#cc6677",
    "top_k": "#aa4499",
    "communication": "#882255",
    "other": "#dddddd",
}
K_TICKS = (0, 32768, 65536, 98304, 131072)


def styled(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """The same function, run with this file's settings."""

    def run(*arguments: Arguments.args, **named: Arguments.kwargs) -> Figure:
        with rc_context(STYLE):
            return draw(*arguments, **named)

    return run


def save(figure: Figure, path: Path) -> None:
    """Writes a .png or .svg without a date in it; raises CostError when it cannot."""
    kind = path.suffix.lower().removeprefix(".")
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    try:
        with rc_context(STYLE):
            figure.savefig(path, format=kind, dpi=DOTS_PER_INCH, metadata=metadata)
    except OSError as error:
        raise CostError(f"{path}: {error.strerror}") from None


@styled
def figure3(presets: Mapping[str, Mapping[str, CostModel]]) -> Figure:
    """The lines of figure 3 with the presets' curves on them, and the error below."""
    figure = Figure(figsize=(10.5, 6.4), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, height_ratios=(3, 1))
    for column, phase in enumerate(PHASES):
        top, bottom = grid[0, column], grid[1, column]
        top.set_title(phase)
        for curve in curves().values():
            if curve.phase != phase:
                continue
            color = MODEL_COLORS[curve.shape.name]
            known, usd = zip(*curve.vertices, strict=True)
            top.plot(known, usd, color=color, alpha=0.25, linewidth=6, solid_capstyle="round")
            top.plot(known, usd, "o", color="white", markeredgecolor=color, markersize=6)
            for preset, models in presets.items():
                if curve.name in models:
                    _curve_and_error(top, bottom, models[curve.name], curve, preset)
        top.set_ylim(bottom=0)
        bottom.axhline(0, color=SOFT, linewidth=0.8)
        _position_axis(bottom)
    grid[0, 0].set_ylabel("USD per million tokens")
    grid[1, 0].set_ylabel("error against\nthe figure, %")
    handles = [
        Line2D([], [], color=SOFT, alpha=0.4, linewidth=6, label="figure 3 of the report"),
        Line2D(
            [], [], color="white", marker="o", markeredgecolor=SOFT, label="its vertices in the PDF"
        ),
        *(Line2D([], [], color=INK, linestyle=PRESET_LINES[one], label=one) for one in presets),
        *(Patch(color=color, label=name.upper()) for name, color in MODEL_COLORS.items()),
    ]
    grid[0, 0].legend(handles=handles, loc="upper left")
    figure.suptitle(
        f"DeepSeek-V3.2 report, figure 3, and the cost model (H800, {PRICE:g} USD per GPU-hour)"
    )
    return figure


def _curve_and_error(top: Axes, bottom: Axes, model: CostModel, curve: Curve, preset: str) -> None:
    corners = [position for position, _ in curve.vertices] + list(knees(model, curve.phase))
    positions = _dense(corners)
    usd = usd_per_million(model, curve.phase, positions, PRICE)
    color, line = MODEL_COLORS[curve.shape.name], PRESET_LINES[preset]
    top.plot(positions, usd, color=color, linestyle=line, linewidth=1.4)
    drawn = curve.drawn(positions)
    bottom.plot(positions, 100 * (usd / drawn - 1), color=color, linestyle=line, linewidth=1.2)
    # The first preset's knees stand for all: others lie within the width of the mark.
    if not top.texts:
        for knee in knees(model, curve.phase):
            at = float(usd_per_million(model, curve.phase, knee, PRICE))
            top.annotate(
                f"knee at {knee:,}",
                (knee, at),
                xytext=(36, -13),
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.8},
                color=INK,
            )


@styled
def request(answer: Request, about: str) -> Figure:
    """Dollars of prefill and decode, stacked by component."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    for row, cost in enumerate((answer.decode, answer.prefill)):
        left = 0.0
        for name, usd in cost.usd_by_component.items():
            axes.barh(row, usd, left=left, color=COMPONENT_COLORS[name], edgecolor="white")
            left += usd
        text = f"  {cost.tokens:,} tokens, {cost.usd:.6f} USD"
        axes.text(left, row, text, va="center", color=INK)
    axes.set_yticks([0, 1], ["decode", "prefill"])
    widest = max(answer.prefill.usd, answer.decode.usd)
    axes.set_xlim(0, 1.4 * widest if widest else 1)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("USD")
    axes.set_title(
        f"{answer.prompt_tokens:,} prompt tokens ({answer.cached_tokens:,} cached), "
        f"{answer.output_tokens:,} output tokens: {answer.usd:.6f} USD"
    )
    names = (*answer.prefill.usd_by_component, *answer.decode.usd_by_component)
    _component_legend(figure, names, about)
    return figure


@styled
def trajectory(answer: Trajectory, about: str) -> Figure:
    """A tool loop under each policy: dollars by component, and how they add up over the steps."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    bars, lines = figure.subplots(1, 2)
    for column, policy in enumerate(POLICIES):
        found, height = answer.policies[policy], 0.0
        for key, usd in found.usd_by_component.items():
            phase, name = key.split(".")
            bars.bar(
                column,
                usd,
                bottom=height,
                color=COMPONENT_COLORS[name],
                edgecolor="white",
                hatch="///" if phase == "decode" else None,
            )
            height += usd
        ended = "" if found.complete else f"\nwindow full after {found.steps}"
        bars.text(column, height, f"{found.usd:.5f}{ended}", ha="center", va="bottom", color=INK)
        # Managed is kept until the window is full, so kept is drawn wide beneath it.
        lines.plot(
            np.arange(1, found.steps + 1),
            np.cumsum(found.usd_of_steps),
            color=POLICY_COLORS[policy],
            linewidth=4.0 if policy == "kept" else 1.5,
            alpha=0.5 if policy == "kept" else 1.0,
            label=policy,
        )
    highest = max(found.usd for found in answer.policies.values())
    bars.set_ylim(0, 1.2 * highest if highest else 1)
    bars.set_xticks(range(len(POLICIES)), POLICIES)
    bars.grid(axis="x", visible=False)
    bars.set_ylabel("USD")
    bars.set_title(f"{answer.loop.steps} steps (decode hatched)")
    lines.set_title("USD so far")
    lines.set_xlabel("step")
    lines.set_ylim(bottom=0)
    lines.xaxis.set_major_locator(MaxNLocator(integer=True))
    lines.legend(loc="upper left")
    names = [key.split(".")[1] for one in answer.policies.values() for key in one.usd_by_component]
    _component_legend(figure, names, about)
    return figure


@styled
def compare(answer: Comparison, models: tuple[CostModel, CostModel], about: str) -> Figure:
    """Both models' curves, and where one becomes the cheaper."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, phase in zip(panels, PHASES, strict=True):
        found = answer.phases[phase]
        both = _curves_of(models, phase, answer.usd_per_gpu_hour)
        for name, color, (positions, usd) in zip(answer.models, (FIRST, SECOND), both, strict=True):
            axes.plot(positions, usd, color=color, label=name)
        start = found.cheaper_from_position
        if start is not None and start > 0:
            at = float(np.interp(start, *both[0]))
            axes.plot(start, at, "o", color=INK, markersize=5)
            axes.annotate(
                f"{found.cheaper} cheaper from {start:,}",
                (start, at),
                xytext=(24, -13),
                textcoords="offset points",
                color=INK,
            )
        axes.set_title(phase)
        axes.set_ylim(bottom=0)
        _position_axis(axes)
    panels[0].set_ylabel("USD per million tokens")
    panels[0].legend(loc="upper left")
    figure.suptitle(about, color=SOFT, fontsize=9)
    return figure


@styled
def capacity(at: Callable[[int], Capacity], context: int, about: str) -> Figure:
    """Sequences, tokens per second and dollars by context length; the one asked for is marked."""
    found = list(_capacities(at, context))
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    contexts = [one.context_tokens for one in found]
    asked = at(context)
    for axes, (title, field) in zip(
        panels,
        (
            ("sequences per GPU", "sequences"),
            ("output tokens/s per GPU", "tokens_per_second"),
            ("USD per million output tokens", "usd_per_million_tokens"),
        ),
        strict=True,
    ):
        axes.plot(contexts, [getattr(one, field) for one in found], color=FIRST)
        axes.plot(context, getattr(asked, field), "o", color=SECOND)
        axes.set_title(title)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        axes.set_xlabel("tokens of context")
    figure.suptitle(f"{asked.gpus:,} GPUs, {about}", color=SOFT, fontsize=9)
    return figure


def _capacities(at: Callable[[int], Capacity], context: int) -> Iterable[Capacity]:
    lengths = np.unique(np.geomspace(1024, max(POSITIONS, context), 120).astype(int))
    for length in lengths:
        try:
            yield at(int(length))
        except CostError:  # longer than all pages together: the line ends here
            return


def _curves_of(
    models: Iterable[CostModel], phase: Phase, price: float
) -> list[tuple[FloatArray, FloatArray]]:
    found = []
    for model in models:
        positions = _dense(knees(model, phase))
        found.append((positions, usd_per_million(model, phase, positions, price)))
    return found


def _dense(corners: Iterable[float]) -> FloatArray:
    """Positions that show the corners: close together at the start, where they are."""
    everywhere = (np.arange(0, 16384, 32), np.arange(16384, POSITIONS, 512), [POSITIONS - 1])
    return np.unique(np.concatenate([*everywhere, list(corners)])).astype(np.float64)


def _position_axis(axes: Axes) -> None:
    axes.set_xlim(0, POSITIONS)
    axes.set_xticks(K_TICKS)
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.set_xlabel("token position")


def _thousands(value: float, _: object) -> str:
    return f"{value / 1024:g}K" if value >= 1024 else f"{value:g}"


def _plain(value: float, _: object) -> str:
    return f"{value:,g}"


def _component_legend(figure: Figure, names: Iterable[str], about: str) -> None:
    handles = [Patch(color=COMPONENT_COLORS[name], label=name) for name in dict.fromkeys(names)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))
    figure.suptitle(about, color=SOFT, fontsize=9)

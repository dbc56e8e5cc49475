"""Figure 3 of the DeepSeek-V3.2 report as data, and how far a preset is from it.

`figure3.json` holds the vertices of the four drawn lines, read from the vector graphics of the PDF:
H800 cluster, 2 USD per GPU-hour. Near a knee the drawn line differs from the curve it was drawn
from by up to a tenth of a pixel, because the plotting program leaves out points; so a model that is
exact at every vertex may still be 1 % off the line there.
"""

from __future__ import annotations

import json
from importlib.resources import files

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from cost_model.costs import usd_per_million
from cost_model.errors import CostError
from cost_model.model import CostModel, Phase
from cost_model.shape import V31, V32, ModelShape
from cost_model.work import FloatArray, as_positions

PRICE = 2.0
"""USD per GPU-hour in the figure."""
POSITIONS = 131072


class Curve(msgspec.Struct, frozen=True):
    """One line of the figure."""

    name: str
    phase: Phase
    shape: ModelShape
    vertices: tuple[tuple[float, float], ...]
    """(position, USD per million tokens)."""

    def drawn(self, positions: ArrayLike) -> FloatArray:
        """USD per million tokens of the drawn line at positions 0 to 131071."""
        values = as_positions(positions)
        if np.any(values > self.vertices[-1][0]):
            raise CostError(
                f"position is {values.max():g}; allowed: 0 to {self.vertices[-1][0]:g}, "
                "the end of the figure"
            )
        known, usd = zip(*self.vertices, strict=True)
        return np.interp(values, known, usd)


class Match(msgspec.Struct, frozen=True):
    """A preset's curve beside the figure's."""

    positions: FloatArray
    usd_per_million_tokens: FloatArray
    drawn: FloatArray
    max_relative_error: float
    worst_position: int
    max_vertex_error: float


def curves() -> dict[str, Curve]:
    """The figure's four lines, by name: "prefill V3.1", ..., "decode V3.2"."""
    content = json.loads(files("cost_model").joinpath("figure3.json").read_bytes())
    shapes = {"V3.1": V31, "V3.2": V32}
    found = {}
    for name, vertices in content["curves"].items():
        phase, model = name.split()
        found[name] = Curve(name, phase, shapes[model], tuple(map(tuple, vertices)))
    return found


def match(model: CostModel, curve: Curve, positions: ArrayLike | None = None) -> Match:
    """How `model` compares with `curve` at `positions` (None: at every one of the figure)."""
    asked = np.arange(POSITIONS) if positions is None else as_positions(positions)
    if asked.size == 0:
        raise CostError("positions is empty; allowed: at least one")
    usd = usd_per_million(model, curve.phase, asked, PRICE)
    drawn = curve.drawn(asked)
    error = np.abs(usd / drawn - 1)
    known, at_vertex = np.array(curve.vertices).T
    vertex = np.abs(usd_per_million(model, curve.phase, known, PRICE) / at_vertex - 1)
    return Match(
        np.asarray(asked, dtype=np.float64),
        usd,
        drawn,
        float(error.max()),
        int(asked[int(error.argmax())]),
        float(vertex.max()),
    )

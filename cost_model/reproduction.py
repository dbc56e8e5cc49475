"""How presets reproduce figure 3 of the DeepSeek-V3.2 report, and what that hangs on."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from cost_model.errors import CostError
from cost_model.figure3 import POSITIONS, curves, match
from cost_model.inverse import knees
from cost_model.model import CostModel
from cost_model.presets import choose, same_model
from cost_model.roofline import Roofline, RooflineChoices

ROUND_POSITIONS = (0, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 98304, 131071)
"""Shown where nobody asks for others."""
SENSITIVITY = {
    "as chosen": RooflineChoices(),
    "batch 64": RooflineChoices(batch=64),
    "batch 256": RooflineChoices(batch=256),
    "tokens_per_read 1 (no MTP sharing)": RooflineChoices(tokens_per_read=1),
    "sms_lost_to nothing": RooflineChoices(sms_lost_to="nothing"),
    "sms_lost_to everything": RooflineChoices(sms_lost_to="everything"),
    "decode_module fp8 cache": RooflineChoices(decode_module="fp8 cache"),
    "index_dtype bf16": RooflineChoices(index_dtype="bf16"),
}
"""Each choice that preset `roofline` leaves open, taken the other way."""


class CurveAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One preset on one line of the figure."""

    positions: list[int]
    usd_per_million_tokens: list[float]
    drawn_usd_per_million_tokens: list[float]
    """The line in the figure."""
    max_relative_error: float
    """The largest at `positions`; those shown by default hold the worst of all."""
    worst_position: int
    max_relative_error_of_vertices: float
    knees: list[int]


Figure3 = dict[str, dict[str, CurveAnswer]]
"""Preset -> name of a line, as in `figure3.json` -> how they compare."""


def models_of_figure(preset: str) -> dict[str, CostModel]:
    """The figure's lines by name, each with the model that `preset` has for it."""
    if not preset.endswith(".json"):
        return {name: choose(preset, line.shape.name).model for name, line in curves().items()}
    measured = choose(preset).model
    shape = measured.shape
    found = {name: measured for name, line in curves().items() if same_model(line.shape, shape)}
    if not found:
        raise CostError(f"model is {shape.name!r} in {preset}; the figure has: v3.1, v3.2")
    return found


def figure3(presets: Mapping[str, Mapping[str, CostModel]], positions: list[int] | None) -> Figure3:
    """Every preset's lines beside the figure's, at `positions` or, for None, where one looks."""
    return {
        preset: {name: _curve(model, name, positions) for name, model in models.items()}
        for preset, models in presets.items()
    }


def _curve(model: CostModel, name: str, positions: list[int] | None) -> CurveAnswer:
    curve = curves()[name]
    found = match(model, curve, positions)
    if positions is None:
        vertices = {int(position) for position, _ in curve.vertices}
        listed = sorted({*ROUND_POSITIONS, *vertices, found.worst_position})
        at = np.array(listed)
    else:
        listed, at = positions, np.arange(len(positions))
    return CurveAnswer(
        positions=listed,
        usd_per_million_tokens=found.usd_per_million_tokens[at].tolist(),
        drawn_usd_per_million_tokens=found.drawn[at].tolist(),
        max_relative_error=found.max_relative_error,
        worst_position=found.worst_position,
        max_relative_error_of_vertices=found.max_vertex_error,
        knees=knees(model, curve.phase),
    )


def sensitivity() -> dict[str, dict[str, float]]:
    """Choice -> line of the figure -> the roofline's signed relative error where it is largest.

    Looked for at every 16th position and at the figure's vertices: errors of straight lines against
    straight lines are largest at corners, and move by far less than 0.1 % between these.
    """
    table: dict[str, dict[str, float]] = {}
    for choice, choices in SENSITIVITY.items():
        table[choice] = {}
        for name, curve in curves().items():
            known = [position for position, _ in curve.vertices]
            positions = np.union1d(np.arange(0, POSITIONS, 16), known)
            found = match(Roofline(curve.shape, choices=choices), curve, positions)
            errors = found.usd_per_million_tokens / found.drawn - 1
            table[choice][name] = float(errors[np.argmax(np.abs(errors))])
    return table

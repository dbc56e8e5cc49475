"""From the words of a command line to a preset: which model, on which machine, at which price."""

from __future__ import annotations

import msgspec

from cost_model.costs import require_price
from cost_model.errors import CostError
from cost_model.machines import Machine, machine_named
from cost_model.measured import Measured, load_operator_times
from cost_model.model import CostModel
from cost_model.paper import PEAK, Paper
from cost_model.roofline import Roofline
from cost_model.shape import V32, ModelShape, shape_named

PRESETS = ("paper", "roofline")
"""Presets with a name; `measured` is given by its file."""


class Chosen(msgspec.Struct, frozen=True):
    """A preset about one model on one machine, and what an hour of the machine costs."""

    model: CostModel
    machine: str
    usd_per_hour: float
    estimated: tuple[str, ...] = ()
    """Components of preset `measured` that its file lacks: they are the roofline's."""

    @property
    def about(self) -> str:
        """One line for people: preset, model, machine and price."""
        return (
            f"preset {self.model.preset}, {self.model.shape.name} on {self.machine} "
            f"at {self.usd_per_hour:g} USD per GPU-hour"
        )


def choose(
    preset: str, model: str | None = None, gpu: str | None = None, price: float | None = None
) -> Chosen:
    """The preset called `preset`, or of a .json file of operator times, for a model and a machine.

    None: V3.2, an H800, the machine's own price. Raises CostError for what does not go together:
    `paper` is about an H800, and a file about the model and the machine it names.
    """
    if price is not None:
        require_price(price)
    if preset.endswith(".json"):
        return _measured(preset, model, gpu, price)
    if preset not in PRESETS:
        raise CostError(
            f"preset is {preset!r}; allowed: {', '.join(PRESETS)}, "
            "or a .json file of operator times"
        )
    machine = PEAK if gpu is None else machine_named(gpu)
    shape = V32 if model is None else shape_named(model)
    if preset == "paper" and machine != PEAK:
        raise CostError(
            f"gpu is {gpu!r}, which preset 'paper' has no constants for; allowed: "
            f"{PEAK.name} with paper, or {gpu} with --preset roofline"
        )
    chosen: CostModel = Paper(shape) if preset == "paper" else Roofline(shape, machine)
    return Chosen(chosen, machine.name, _price(machine, price))


def _measured(preset: str, model: str | None, gpu: str | None, price: float | None) -> Chosen:
    measured = Measured(load_operator_times(preset))
    times = measured.times
    if gpu is not None:
        raise CostError(f"gpu is {gpu!r}; {preset} allows none: it was measured on {times.machine}")
    if model is not None and not same_model(shape_named(model), measured.shape):
        raise CostError(f"model is {model!r}; {preset} allows: {measured.shape.name}, measured")
    fallback = machine_named(times.fallback_machine)
    return Chosen(measured, times.machine, _price(fallback, price), measured.fallbacks)


def same_model(one: ModelShape, other: ModelShape) -> bool:
    """Whether two shapes are equal in all but their names."""
    return msgspec.structs.replace(one, name=other.name) == other


def _price(machine: Machine, price: float | None) -> float:
    return machine.usd_per_hour if price is None else price

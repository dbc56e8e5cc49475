"""`winnow cost`: what tokens, requests, tool loops and machines cost, as text, JSON and plots."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import msgspec

from cost_model import answers, published_tables, tables
from cost_model.capacity import Capacity
from cost_model.capacity import capacity as capacity_of
from cost_model.costs import require_price
from cost_model.derivation import fixed_times, shares
from cost_model.errors import CostError
from cost_model.machines import MACHINES, machine_named
from cost_model.measure import measure
from cost_model.options import parser
from cost_model.presets import PRESETS, choose
from cost_model.published import INPUTS
from cost_model.reproduction import ROUND_POSITIONS, figure3, models_of_figure, sensitivity
from cost_model.shape import V32, shape_named
from cost_model.systems import FLOORS, beside
from cost_model.trajectory import ToolLoop


def main(arguments: Sequence[str]) -> int:
    """Answers one question; returns the exit status, 2 for one that cannot be answered."""
    parsed = parser().parse_args(arguments)
    try:
        COMMANDS[parsed.command](parsed)
    except CostError as error:
        print(f"winnow cost: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read it, `head` say, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"winnow cost: cannot write the answer: {error}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def run_figure3(parsed: argparse.Namespace) -> None:
    """The four curves of every preset beside the figure's."""
    presets = {}
    for preset in parsed.preset:
        name = "measured" if preset.endswith(".json") else preset
        if name in presets:
            raise CostError(f"preset {name} is given twice; allowed: once each")
        presets[name] = models_of_figure(preset)
    answer = figure3(presets, parsed.positions)
    _show(parsed, answer, tables.figure3(answer), lambda plots: plots.figure3(presets))


def run_request(parsed: argparse.Namespace) -> None:
    """One request by phase and component."""
    chosen = choose(parsed.preset, parsed.model, parsed.gpu, parsed.price)
    answer = answers.request(chosen, parsed.prompt, parsed.cached, parsed.output)
    text = tables.request(answer, chosen.about)
    _show(parsed, answer, text, lambda plots: plots.request(answer, chosen.about))


def run_trajectory(parsed: argparse.Namespace) -> None:
    """A tool loop with its reasoning kept, dropped and managed."""
    chosen = choose(parsed.preset, parsed.model, parsed.gpu, parsed.price)
    fields = {name: getattr(parsed, name) for name in ToolLoop.__struct_fields__}
    answer = answers.trajectory(chosen, ToolLoop(**fields))
    text = tables.trajectory(answer, chosen.about)
    _show(parsed, answer, text, lambda plots: plots.trajectory(answer, chosen.about))


def run_compare(parsed: argparse.Namespace) -> None:
    """Two models on the same machine."""
    if parsed.preset not in PRESETS:
        raise CostError(
            f"preset is {parsed.preset!r}; compare allows: {', '.join(PRESETS)} "
            "(operator times are about one model)"
        )
    pair = [choose(parsed.preset, name, parsed.gpu, parsed.price) for name in parsed.models]
    positions = list(ROUND_POSITIONS) if parsed.positions is None else parsed.positions
    answer = answers.compare(pair[0], pair[1], positions, parsed.at_cost)
    about = f"preset {answer.preset}, {answer.gpu} at {answer.usd_per_gpu_hour:g} USD per GPU-hour"
    models = (pair[0].model, pair[1].model)
    text = tables.compare(answer, about)
    _show(parsed, answer, text, lambda plots: plots.compare(answer, models, about))


def run_capacity(parsed: argparse.Namespace) -> None:
    """What a group of GPUs holds and makes."""
    machine = machine_named(parsed.gpu or "h800")
    price = machine.usd_per_hour if parsed.price is None else require_price(parsed.price)
    shape = V32 if parsed.model is None else shape_named(parsed.model)

    def at(context: int) -> Capacity:
        return capacity_of(
            shape,
            machine,
            gpus=parsed.gpus,
            context=context,
            price=price,
            weight_dtype=parsed.dtype,
            latent_dtype=parsed.kv_cache_dtype,
            index_dtype=parsed.index_dtype,
            memory_share=parsed.gpu_memory_utilization,
        )

    found = at(parsed.context)
    about = f"preset roofline, {shape.name} on {machine.name} at {price:g} USD per GPU-hour"
    names = {"preset": "roofline", "model": shape.name, "gpu": machine.name}
    answer = names | {"usd_per_gpu_hour": price} | msgspec.structs.asdict(found)
    text = tables.capacity(found, about)
    _show(parsed, answer, text, lambda plots: plots.capacity(at, parsed.context, about))


def run_derivation(parsed: argparse.Namespace) -> None:
    """The constants of preset paper, from the figure's slopes."""
    fixed, found = fixed_times(), shares()
    answer = {
        "fixed": fixed,
        "shares": [msgspec.structs.asdict(one) | {"share": one.share} for one in found],
    }
    _show(parsed, answer, published_tables.derivation(fixed, found))


def run_inputs(parsed: argparse.Namespace) -> None:
    """The roofline's inputs, the data sheets, and what the choices change."""
    changes = sensitivity()
    answer = {"inputs": INPUTS, "machines": MACHINES, "largest_relative_error": changes}
    _show(parsed, answer, published_tables.inputs(changes))


def run_systems(parsed: argparse.Namespace) -> None:
    """Published systems and the network's floor beside a preset."""
    chosen = choose(parsed.preset, "v3.1")
    found = beside(chosen.model)
    answer = {
        "preset": chosen.model.preset,
        "systems": [msgspec.structs.asdict(one) | {"ratio": one.ratio} for one in found],
        "all_to_all": [
            msgspec.structs.asdict(one)
            | {"seconds": one.seconds, "usd_per_million_tokens": one.usd_per_million_tokens}
            for one in FLOORS
        ],
    }
    _show(parsed, answer, published_tables.systems(found, chosen.about))


def run_measure(parsed: argparse.Namespace) -> None:
    """This machine's data sheet."""
    machine = measure()
    _show(parsed, machine, published_tables.machines([machine]))


def _show(
    parsed: argparse.Namespace,
    answer: Any,
    text: str,
    draw: Callable[[ModuleType], Any] | None = None,
) -> None:
    """Prints an answer, and draws it if a file was given."""
    if draw is not None and parsed.plot is not None:
        # matplotlib takes longer to import than every answer takes to compute.
        from cost_model import plots

        plots.save(draw(plots), parsed.plot)
        print(f"drawn: {parsed.plot}", file=sys.stderr)
    if parsed.json:
        print(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode())
    else:
        print(text)
    sys.stdout.flush()


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "figure3": run_figure3,
    "request": run_request,
    "trajectory": run_trajectory,
    "compare": run_compare,
    "capacity": run_capacity,
    "derivation": run_derivation,
    "inputs": run_inputs,
    "systems": run_systems,
    "measure": run_measure,
}

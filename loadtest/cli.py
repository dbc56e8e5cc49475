"""`winnow simulate`: a trace or made-up agents on N GPUs, on a virtual clock."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

import msgspec
from tqdm import tqdm

from cost_model.errors import CostError
from cost_model.machines import machine_named
from cost_model.shape import shape_named
from loadtest.agents import AgentSource
from loadtest.conversations import ConversationError, ConversationShape
from loadtest.options import parser
from loadtest.recording import RecordingError, replay
from loadtest.replica import Replica, Settings, replica
from loadtest.report import Report, report
from loadtest.simulator import Observed, Simulator
from loadtest.sources import Source, TraceSource
from loadtest.tables import simulation
from loadtest.traces import TraceError, load_trace


def main(arguments: Sequence[str]) -> int:
    """Simulates; returns the exit status: 1 for a replay that differs, 2 for bad input."""
    options = parser()
    parsed = options.parse_args(arguments)
    given = [parsed.trace is not None, parsed.agents is not None, parsed.replay is not None]
    if sum(given) != 1:
        options.error("one of TRACE, --agents and --replay is needed, and only one")
    try:
        if parsed.replay is not None:
            return _replay(parsed)
        _simulate(parsed)
    except (CostError, ConversationError, RecordingError, TraceError) as error:
        print(f"winnow simulate: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"winnow simulate: {where}{error.strerror}", file=sys.stderr)
        return 2
    return 0


def _replay(parsed: argparse.Namespace) -> int:
    found = replay(parsed.replay)
    if parsed.json:
        print(msgspec.json.encode(found).decode())
    elif found.difference is None:
        print(f"{found.steps:,} steps of {found.requests:,} requests: every decision is the same")
    else:
        print(found.difference)
    return 0 if found.difference is None else 1


def _simulate(parsed: argparse.Namespace) -> None:
    target = _replica(parsed)
    source, total = _source(parsed, target)
    # On stderr; none where that is no terminal.
    with tqdm(total=total, unit="request", disable=None) as bar:
        simulator = Simulator(
            target,
            source,
            deadline_s=parsed.deadline,
            measure_from_s=parsed.measure_from,
            record=parsed.record,
            until_s=math.inf if parsed.agents is None else parsed.duration,
            on_end=bar.update,
        )
        observed = simulator.run()
    figures = report(
        target,
        observed,
        waits=simulator.door.waits,
        first_token_target_s=parsed.first_token_target,
        measured_from_s=parsed.measure_from,
    )
    _show(parsed, observed, figures)


def _replica(parsed: argparse.Namespace) -> Replica:
    settings = Settings(
        inter_token_target_s=parsed.inter_token_target,
        pages=parsed.pages,
        max_model_len=parsed.max_model_len,
        queue_s=parsed.queue,
        retention=not parsed.plain_lru,
        pre_warm=not parsed.no_pre_warm,
    )
    machine = machine_named(parsed.gpu)
    return replica(shape_named(parsed.model), machine, parsed.gpus, settings, price=parsed.price)


def _source(parsed: argparse.Namespace, target: Replica) -> tuple[Source, int | None]:
    """The requests, and how many there will be if that is known."""
    if parsed.trace is not None:
        trace = load_trace(parsed.trace)[: parsed.requests]
        return TraceSource(trace, speed=parsed.speed, tenants=parsed.tenants), len(trace)
    agents = AgentSource(
        ConversationShape(reasoning_of=parsed.reasoning_of),
        agents=parsed.agents,
        seed=parsed.seed,
        window_tokens=target.config.max_model_len,
        until_s=parsed.duration,
        tenants=parsed.tenants,
    )
    return agents, None


def _show(parsed: argparse.Namespace, observed: Observed, figures: Report) -> None:
    if parsed.plot is not None:
        # matplotlib takes longer to import than most answers take to compute.
        from cost_model.plots import save
        from loadtest import plots

        save(plots.simulation(observed, figures), parsed.plot)
        print(f"drawn: {parsed.plot}", file=sys.stderr)
    if parsed.json:
        print(msgspec.json.format(msgspec.json.encode(figures), indent=2).decode())
    else:
        print(simulation(figures))
    sys.stdout.flush()

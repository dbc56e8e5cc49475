"""`winnow load`: from a command line to figures, and an exit status."""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cost_model.errors import CostError
from cost_model.presets import Chosen, choose
from loadtest.live.cost import Cost, cost_by_counters, cost_by_price
from loadtest.live.figures import figures
from loadtest.live.options import parser
from loadtest.live.outcome import Outcome, warnings
from loadtest.live.plan import Plan, PlanError, within_window
from loadtest.live.profiles import PROFILES, Scale
from loadtest.live.samples import Sample
from loadtest.live.service import Service, ServiceError, find_service
from loadtest.live.tables import outcome as as_text
from loadtest.live.targets import NONE, Targets, TargetsError, load_targets
from loadtest.live.verdict import ExitStatus, verdict
from loadtest.live.window import Window, steady_window
from loadtest.traces import TraceError, TraceRequest, load_trace

if TYPE_CHECKING:
    from loadtest.live.process import Seen

DEFAULT_USERS, DEFAULT_DURATION_S = 8, 120.0


def run(arguments: Sequence[str]) -> int:
    """Runs a load test; returns its exit status (`ExitStatus`)."""
    options = parser()
    parsed = options.parse_args(arguments)
    if (parsed.url is None) == (parsed.serve is None):
        options.error("one of URL and --serve is needed, and only one")
    if parsed.trace is not None and (parsed.users is not None or parsed.rate is not None):
        options.error("--trace brings its own times; --users and --rate go without it")
    if parsed.users is not None and parsed.rate is not None:
        options.error("--users is a closed loop and --rate an open one; give one of them")
    try:
        # All that can be wrong without a server, before one is started or asked.
        targets = NONE if parsed.targets is None else load_targets(parsed.targets)
        trace = [] if parsed.trace is None else load_trace(parsed.trace)[: parsed.requests]
        expected = _expected(parsed)
        key = _key(parsed.api_key_file)
        for file in (parsed.report, parsed.samples):
            _require_folder(file)
        return _load(parsed, arguments, targets, trace, expected, key)
    except (CostError, PlanError, ServiceError, TargetsError, TraceError) as error:
        print(f"winnow load: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("winnow load: interrupted before the run", file=sys.stderr)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"winnow load: {where}{error.strerror or error}", file=sys.stderr)
    return ExitStatus.FAILED


def _load(
    parsed: argparse.Namespace,
    arguments: Sequence[str],
    targets: Targets,
    trace: list[TraceRequest],
    expected: Chosen | None,
    key: str | None,
) -> int:
    with ExitStack() as stack:
        url = parsed.url
        if url is None:
            from loadtest.live.served import served

            _say("starting winnow serve")
            url = stack.enter_context(served(parsed.serve))
        service = find_service(
            url,
            key=key,
            model=parsed.model,
            metrics_url=parsed.metrics_url,
            extensions=parsed.extensions,
            silence_limit_s=parsed.silence_limit,
        )
        plan = _plan(parsed, trace, service)
        begun = datetime.now(UTC).astimezone().isoformat(timespec="seconds")
        _say(f"{plan.about}; {plan.duration_s:g} s against {service.address}")
        seen = _run(plan, service, parsed)
    window = _window(plan, seen)
    cost = _cost(parsed, seen, window, expected)
    found = figures(
        seen.run.samples,
        window,
        run_s=seen.ended_s,
        limits=targets.goodput.limits,
        lag=seen.lag.inside(window),
        cost=cost,
        open_loop=plan.open_loop,
    )
    outcome = Outcome(
        begun=begun,
        server=str(service.address),
        model=service.model,
        plan=plan.about,
        command=shlex.join(["winnow", "load", *arguments]),
        versions=_versions(),
        failures=tuple(seen.run.failures),
        warnings=warnings(found, seen.run.failures, interrupted=seen.run.cut_short),
        figures=found,
        verdict=verdict(found, targets, failed=bool(seen.run.failures)),
    )
    _show(parsed, outcome, seen)
    return outcome.verdict.status


def _run(plan: Plan, service: Service, parsed: argparse.Namespace) -> Seen:
    # Only here: locust patches the standard library of whoever imports it.
    from loadtest.live.process import load

    return load(
        plan,
        service,
        web=parsed.web,
        usd_per_hour=parsed.price,
        on_begin=lambda address: _say(f"web page: {address}"),
    )


def _plan(parsed: argparse.Namespace, trace: list[TraceRequest], service: Service) -> Plan:
    scale = Scale(parsed.scale, parsed.pace)
    held: tuple[TraceRequest, ...] = ()
    duration_s = parsed.duration or DEFAULT_DURATION_S
    if trace:
        held = within_window(trace, scale.lengths, service.window_tokens)
        if len(held) < len(trace):
            _say(
                f"{len(trace) - len(held):,} of {len(trace):,} requests of the trace are left out: "
                f"longer than the server's window of {service.window_tokens:,} tokens"
            )
        # Its last request must be sent, too.
        duration_s = parsed.duration or trace[-1].arrival_s / parsed.speed + 1
    return Plan(
        name=f"profile {parsed.profile}" if not trace else f"trace {parsed.trace.name}",
        parts=PROFILES[parsed.profile].parts if not trace else (),
        trace=held,
        scale=scale,
        seed=parsed.seed,
        users=parsed.users or DEFAULT_USERS,
        ramp_s=parsed.ramp,
        rate_per_s=parsed.rate,
        arrivals=parsed.arrivals,
        cv=parsed.cv,
        speed=parsed.speed,
        duration_s=duration_s,
        warm_up_s=parsed.warm_up,
        drain_s=parsed.drain,
        silence_limit_s=parsed.silence_limit,
    )


def _window(plan: Plan, seen: Seen) -> Window:
    return steady_window(
        seen.run.samples,
        begin_s=plan.warm_up_s,
        until_s=seen.run.stopped_s,
        ended_s=seen.ended_s,
    )


def _cost(
    parsed: argparse.Namespace, seen: Seen, window: Window, expected: Chosen | None
) -> Cost | None:
    counted = cost_by_counters(seen.scrapes, window, gpus=parsed.gpus, usd_per_hour=parsed.price)
    if counted is not None or parsed.price is None:
        return counted
    return cost_by_price(
        seen.run.samples, window, gpus=parsed.gpus, usd_per_hour=parsed.price, expected=expected
    )


def _expected(parsed: argparse.Namespace) -> Chosen | None:
    if parsed.cost_preset is None:
        if parsed.cost_model is not None or parsed.cost_gpu is not None:
            raise CostError("--cost-model and --cost-gpu need --cost-preset: paper, roofline, FILE")
        return None
    return choose(parsed.cost_preset, parsed.cost_model, parsed.cost_gpu, parsed.price)


def _key(file: Path | None) -> str | None:
    if file is None:
        return None
    lines = file.read_text().split()
    if not lines:
        raise ServiceError(f"{file}: no key in it")
    return lines[0]


def _require_folder(file: Path | None) -> None:
    if file is not None and not file.parent.is_dir():
        raise PlanError(f"{file}: there is no folder {file.parent}")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("winnow", "locust", "gevent"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _show(parsed: argparse.Namespace, outcome: Outcome, seen: Seen) -> None:
    if parsed.json:
        print(msgspec.json.format(msgspec.json.encode(outcome), indent=2).decode(), flush=True)
    else:
        print(as_text(outcome), flush=True)
    if parsed.samples is not None:
        lines = (msgspec.json.encode(_line(one)) for one in seen.run.samples)
        parsed.samples.write_bytes(b"".join(line + b"\n" for line in lines))
        _say(f"samples: {parsed.samples}")
    if parsed.report is not None:
        # matplotlib takes longer to import than all the figures to compute.
        from loadtest.live.page import page

        html = page(outcome, seen.run.samples, seen.scrapes, parsed.price)
        parsed.report.write_text(html, encoding="utf-8")
        _say(f"report: {parsed.report}")


def _line(sample: Sample) -> dict[str, object]:
    fields = msgspec.structs.asdict(sample)
    return {**fields, "chunks_s": list(fields["chunks_s"])}


def _say(text: str) -> None:
    print(f"winnow load: {text}", file=sys.stderr, flush=True)

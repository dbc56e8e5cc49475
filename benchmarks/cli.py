"""`winnow bench`: measures this machine's steps, alone and beside other implementations."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import torch

from benchmarks import peers
from benchmarks.checkpoint import model_folder
from benchmarks.profile import OperatorTime, operators
from benchmarks.report import Machine, describe, machine, milliseconds, table
from benchmarks.step import (
    CLOCKS,
    StepTimes,
    decode_stopwatch,
    load,
    measure_decode,
    measure_prefill,
)
from scheduler.request import Sampling

PROFILED_STEPS = 20
EPILOG = """\
examples:
  winnow bench step --profile
  winnow bench step --model embedded --batch 1 16 --context 1024 --json steps.json
  winnow bench peers --batch 1 8 --prompt 128
"""


def main(arguments: Sequence[str]) -> int:
    """Runs one benchmark; returns the exit status."""
    options = _parser().parse_args(list(arguments))
    status: int = options.run(options)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="winnow bench",
        description="Measure this machine's steps, alone and beside transformers.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="benchmark")
    step = commands.add_parser("step", help="one decode step and one prefill, taken apart")
    step.set_defaults(run=_step)
    _common(step)
    step.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], help="sequences")
    step.add_argument("--context", type=int, nargs="+", default=[128, 512], help="tokens of each")
    step.add_argument("--steps", type=int, default=30, help="decode steps measured")
    step.add_argument("--temperature", type=float, default=0.0)
    step.add_argument("--repeats", type=int, default=3, help="prefills measured; 0: decode only")
    step.add_argument("--profile", action="store_true", help="list the operators of a step")
    step.add_argument("--top", type=int, default=25, help="operators listed")

    beside = commands.add_parser("peers", help="generation beside transformers, parity first")
    beside.set_defaults(run=_peers)
    _common(beside)
    beside.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], help="sequences")
    beside.add_argument("--prompt", type=int, nargs="+", default=[128, 512], help="tokens of each")
    beside.add_argument("--tokens", type=int, default=32, help="generated per sequence")
    beside.add_argument("--repeats", type=int, default=3)
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="mid", help="mid, embedded or a folder (%(default)s)")
    parser.add_argument("--threads", type=int, help="of torch; one per core")
    parser.add_argument("--attention", choices=("auto", "sparse", "dense"), default="auto")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--json", type=Path, help="also write the results to this file")


class StepLine(msgspec.Struct, frozen=True):
    """One line of `winnow bench step`."""

    batch: int
    context: int
    decode: StepTimes
    prefill_s: float | None
    operators: list[OperatorTime]


def _step(options: argparse.Namespace) -> int:
    lines = []
    with model_folder(options.model) as folder:
        for context in options.context:
            tokens = context + options.steps + PROFILED_STEPS + 16
            replica = load(
                folder, sequences=max(options.batch), tokens=tokens, **_settings(options)
            )
            for batch in options.batch:
                times = measure_decode(
                    replica,
                    batch=batch,
                    context=context,
                    steps=options.steps,
                    clock=options.clock,
                    temperature=options.temperature,
                )
                prefill_s = None
                if options.repeats:
                    prefill_s = measure_prefill(
                        replica,
                        batch=batch,
                        context=context,
                        repeats=options.repeats,
                        clock=options.clock,
                    )
                dearest = []
                if options.profile:
                    endless = Sampling(max_tokens=1 << 30, temperature=0.0, ignore_eos=True)
                    watch = decode_stopwatch(
                        replica, batch=batch, context=context, clock="wall", sampling=endless
                    )
                    dearest = operators(watch, PROFILED_STEPS)
                    replica.runner.slots.clear()
                lines.append(StepLine(batch, context, times, prefill_s, dearest))
    here = machine()
    print(describe(here))
    print(f"model {options.model}, attention {options.attention}, {options.clock} time, ms")
    print(table(*_step_table(lines)))
    for line in lines:
        if line.operators:
            print(f"\ndecode, batch {line.batch}, context {line.context}:")
            print(table(*_operator_table(line.operators, options.top)))
    _write(options, here, lines)
    return 0


def _peers(options: argparse.Namespace) -> int:
    with model_folder(options.model) as folder, TemporaryDirectory() as exported:
        try:
            found = peers.compare(
                folder,
                peers.export_float32(folder, Path(exported)),
                batches=options.batch,
                prompt_tokens=options.prompt,
                tokens=options.tokens,
                repeats=options.repeats,
                **_settings(options),
            )
        except peers.ParityError as error:
            print(f"winnow bench: no times, since results differ: {error}", file=sys.stderr)
            return 1
    here = machine(("torch", "transformers"))
    print(describe(here))
    print(f"model {options.model}: greedy tokens are equal; ms")
    theirs = {(g.batch, g.prompt_tokens): g for g in found if g.who != "winnow"}
    rows = []
    for g in found:
        other = theirs[g.batch, g.prompt_tokens]
        rows.append(
            [
                f"{g.who}, {g.batch} x {g.prompt_tokens}",
                milliseconds(g.prefill_s),
                f"{other.prefill_s / g.prefill_s:.1f}x",
                milliseconds(g.decode_step_s),
                f"{g.tokens_per_s:.0f}",
                f"{other.decode_step_s / g.decode_step_s:.1f}x",
            ]
        )
    print(table(["", "prefill", "ratio", "decode step", "tokens/s", "ratio"], rows))
    _write(options, here, found)
    return 0


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    names = ("threads", "attention", "dtype")
    return {name: getattr(options, name) for name in names}


def _write(options: argparse.Namespace, here: Machine, lines: Sequence[msgspec.Struct]) -> None:
    """Writes the results where --json says."""
    if options.json:
        report = {"machine": here, "model": options.model, "clock": options.clock, "lines": lines}
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))


def _step_table(lines: list[StepLine]) -> tuple[list[str], list[list[str]]]:
    header = ["batch x context", "step", "forward", "outside", "plan", "batch", "sample", "commit"]
    header += ["tokens/s", "prefill"]
    rows = []
    for line in lines:
        d = line.decode
        parts = (d.step_s, d.forward_s, d.overhead_s, d.plan_s, d.batch_s, d.sample_s, d.commit_s)
        prefill = "" if line.prefill_s is None else milliseconds(line.prefill_s)
        rows.append(
            [
                f"{line.batch} x {line.context}",
                *map(milliseconds, parts),
                f"{line.batch / d.step_s:.0f}",
                prefill,
            ]
        )
    return header, rows


def _operator_table(dearest: list[OperatorTime], top: int) -> tuple[list[str], list[list[str]]]:
    total = sum(operator.self_us for operator in dearest)
    calls = sum(operator.calls for operator in dearest)
    rows = [
        [o.name, o.shapes[:60], f"{o.calls:.0f}", f"{o.self_us:.0f}", f"{o.self_us / total:.1%}"]
        for o in dearest[:top]
    ]
    rows.append(["all", "", f"{calls:.0f}", f"{total:.0f}", "100.0%"])
    return ["operator", "shapes", "calls", "us", "share"], rows


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main(sys.argv[1:]))

"""`winnow bench`: measures this machine's steps, alone and beside other implementations."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from benchmarks import api as apis
from benchmarks import context as contexts
from benchmarks import model as models
from benchmarks import sections
from benchmarks.checkpoint import model_folder
from benchmarks.forms import CONTEXTS as FORM_CONTEXTS
from benchmarks.peers import ParityError
from benchmarks.report import CpuTime, Machine, describe, disturbance, machine
from benchmarks.sections import Section
from benchmarks.step import CLOCKS
from engine.config import ConfigError

EPILOG = """\
examples:
  winnow bench step --profile
  winnow bench step --model embedded --batch 1 16 --context 1024 --json steps.json
  winnow bench peers --batch 1 8 --prompt 128
  winnow bench model --layers 6                 full-width layers, on a Hopper GPU
  winnow bench all --output docs/benchmarks
"""
MODELS = ("mid", "embedded")


def main(arguments: Sequence[str]) -> int:
    """Runs one benchmark; returns the exit status."""
    options = _parser().parse_args(list(arguments))
    command = shlex.join(["winnow", "bench", *arguments])
    try:
        with model_folder(options.model) as folder:
            here = machine(("torch", "transformers", "uvicorn"), threads=options.threads)
            print(describe(here), file=sys.stderr)
            before = CpuTime.now()
            found: list[Section] = options.run(options, folder, here)
            stolen = before.stolen_share(CpuTime.now())
    except ParityError as error:
        print(f"winnow bench: no times, since results differ: {error}", file=sys.stderr)
        return 1
    except ConfigError as error:
        print(f"winnow bench: {error}", file=sys.stderr)
        return 2
    report, numbers = _report(here, stolen, command, found), _json(here, stolen, command, found)
    print(report)
    if options.json:
        options.json.write_bytes(numbers)
    if options.output:
        (options.output / "README.md").write_text(report + "\n")
        (options.output / "results.json").write_bytes(numbers)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="winnow bench",
        description="Measure this machine's steps, alone and beside other implementations.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(output=None)
    commands = parser.add_subparsers(required=True, metavar="benchmark")

    step = commands.add_parser("step", help="one decode step and one prefill, taken apart")
    _common(step, _step)
    _model_settings(step)
    step.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], help="sequences")
    step.add_argument("--context", type=int, nargs="+", default=[128, 512], help="tokens of each")
    step.add_argument("--steps", type=int, default=30, help="decode steps measured")
    step.add_argument("--temperature", type=float, default=0.0)
    step.add_argument("--repeats", type=int, default=3, help="prefills measured; 0: decode only")
    step.add_argument("--profile", action="store_true", help="list the operators of a step")
    step.add_argument("--top", type=int, default=25, help="operators listed")

    beside = commands.add_parser("peers", help="generation beside others, parity first")
    _common(beside, _peers)
    beside.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], help="sequences")
    beside.add_argument("--prompt", type=int, nargs="+", default=[128, 512], help="tokens of each")
    beside.add_argument("--tokens", type=int, default=32, help="generated per sequence")
    beside.add_argument("--repeats", type=int, default=3)

    serve = commands.add_parser("serve", help="clients over HTTP, beside transformers serve")
    _common(serve, _serve)
    serve.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    serve.add_argument("--requests", type=int, default=2, help="of each client")
    serve.add_argument("--prompt", type=int, default=128, help="tokens of a message")
    serve.add_argument("--tokens", type=int, default=64, help="generated per request")
    serve.add_argument("--alone", action="store_true", help="do not start transformers serve")

    growth = commands.add_parser("context", help="decode steps over the context, sparse and dense")
    _common(growth, _context)
    growth.add_argument("--context", type=int, nargs="+", default=list(contexts.CONTEXTS))
    growth.add_argument("--steps", type=int, default=30, help="decode steps measured")
    growth.add_argument("--plot", type=Path, help="draw them into this file")

    forms = commands.add_parser("forms", help="prefill with keys expanded, and absorbed")
    _common(forms, _forms)
    forms.add_argument("--context", type=int, nargs="+", default=list(FORM_CONTEXTS))
    forms.add_argument("--repeats", type=int, default=3)

    layers = commands.add_parser("model", help="few layers of full width, random FP8 weights")
    layers.set_defaults(run=_model, model="embedded")
    layers.add_argument("--layers", type=int, default=6)
    layers.add_argument("--config", choices=("v3.2", "tiny"), default="v3.2", help="widths")
    layers.add_argument("--batch", type=int, nargs="+", default=[1, 64], help="sequences")
    layers.add_argument(
        "--context", type=int, nargs="+", default=[2048, 8192, 32768, 131072], help="tokens of each"
    )
    layers.add_argument("--chunk", type=int, default=4096, help="tokens of a prefill step")
    layers.add_argument("--steps", type=int, default=20, help="measured of each shape")
    layers.add_argument("--enforce-eager", action="store_true", help="no CUDA graphs")
    layers.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of a CPU")
    layers.add_argument("--json", type=Path, help="also write the results to this file")

    streams = commands.add_parser("api", help="streams of the API, beside a bare server")
    streams.set_defaults(run=_api, model="embedded", threads=1)
    streams.add_argument("--streams", type=int, default=256, help="at once")
    streams.add_argument("--tokens", type=int, default=512, help="of each, at least 2")
    streams.add_argument("--rounds", type=int, default=5, help="of both servers in turn")
    streams.add_argument("--idle", type=int, default=1000, help="streams that wait")
    streams.add_argument("--json", type=Path, help="also write the results to this file")

    everything = commands.add_parser("all", help="all of these, as committed in docs/benchmarks")
    _common(everything, _all)
    everything.add_argument("--output", type=Path, default=Path("docs/benchmarks"))
    everything.add_argument("--alone", action="store_true", help="do not start transformers serve")
    return parser


def _common(parser: argparse.ArgumentParser, run: Any) -> None:
    parser.set_defaults(run=run)
    parser.add_argument("--model", default="mid", help="mid, embedded or a folder (%(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="one per core")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--json", type=Path, help="also write the results to this file")


def _model_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--attention", choices=("auto", "sparse", "dense"), default="auto")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--batch-invariant", action="store_true")


def _step(options: argparse.Namespace, folder: Path, here: Machine) -> list[Section]:
    one = sections.steps(
        folder,
        batches=options.batch,
        context_tokens=options.context,
        count=options.steps,
        clock=options.clock,
        temperature=options.temperature,
        repeats=options.repeats,
        profile_top=options.top if options.profile else 0,
        threads=options.threads,
        attention=options.attention,
        dtype=options.dtype,
        batch_invariant=options.batch_invariant,
    )
    return [one]


def _peers(options: argparse.Namespace, folder: Path, here: Machine) -> list[Section]:
    one = sections.generation(
        folder,
        batches=options.batch,
        prompt_tokens=options.prompt,
        tokens=options.tokens,
        repeats=options.repeats,
        threads=options.threads,
    )
    return [one]


def _serve(options: argparse.Namespace, folder: Path, here: Machine) -> list[Section]:
    one = sections.over_http(
        folder,
        clients=options.clients,
        requests=options.requests,
        prompt_tokens=options.prompt,
        tokens=options.tokens,
        alone=options.alone,
        threads=options.threads,
    )
    return [one]


def _context(options: argparse.Namespace, folder: Path, here: Machine) -> list[Section]:
    one = sections.over_context(
        folder,
        context_tokens=options.context,
        count=options.steps,
        clock=options.clock,
        plot=options.plot,
        caption=f"{options.model}, {here.processor}",
        threads=options.threads,
    )
    return [one]


def _forms(options: argparse.Namespace, folder: Path, here: Machine) -> list[Section]:
    one = sections.over_forms(
        folder,
        context_tokens=options.context,
        repeats=options.repeats,
        clock=options.clock,
        threads=options.threads,
    )
    return [one]


def _model(options: argparse.Namespace, folder: Path, here: Machine) -> list[Section]:
    torch.set_num_threads(options.threads)
    return [models.section(options)]


def _api(options: argparse.Namespace, folder: Path, here: Machine) -> list[Section]:
    return [apis.section(options)]


def _all(options: argparse.Namespace, folder: Path, here: Machine) -> list[Section]:
    """Every benchmark with its defaults, on both models; plots go into --output."""
    options.output.mkdir(parents=True, exist_ok=True)
    parser = _parser()
    commands = [
        *(f"peers --model {model}" for model in MODELS),
        *(f"serve --model {model}{' --alone' * options.alone}" for model in MODELS),
        "step --profile --top 12",
        "forms",
        f"context --plot {options.output / 'context.svg'}",
    ]
    found = []
    for command in commands:
        print(f"winnow bench {command}", file=sys.stderr)
        one = parser.parse_args([*command.split(), "--threads", str(options.threads)])
        with model_folder(one.model) as folder:
            for section in one.run(one, folder, here):
                title = f"{section.title}: {one.model}"
                text = f"`winnow bench {command}`\n\n{section.text}"
                if getattr(one, "plot", None):
                    text += f"\n\n![{section.title}]({one.plot.name})"
                found.append(Section(title, text, section.results))
    return found


def _report(here: Machine, stolen: float, command: str, found: Sequence[Section]) -> str:
    parts = [f"# `{command}`", f"{describe(here)}. {disturbance(stolen)}"]
    for section in found:
        parts += [f"## {section.title}", section.text]
    return "\n\n".join(parts)


def _json(here: Machine, stolen: float, command: str, found: Sequence[Section]) -> bytes:
    results = {section.title: section.results for section in found}
    report = {"command": command, "machine": here, "stolen_share": stolen, "results": results}
    return msgspec.json.format(msgspec.json.encode(report), indent=1)

"""`winnow bench`: measures this machine's steps, alone and beside other implementations."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
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
from benchmarks.serving import ServingError
from benchmarks.step import CLOCKS
from engine.config import ConfigError
from engine.loading import cores
from engine.model_config import CheckpointError

EPILOG = """\
examples:
  winnow bench step --profile
  winnow bench step --model embedded --batch 1 16 --context 1024 --json steps.json
  winnow bench peers --batch 1 8 --prompt 128
  winnow bench model --layers 6                 full-width layers, on a Hopper GPU
  winnow bench all --output docs/benchmarks
"""
MODELS = ("mid", "embedded")
PACKAGES = ("torch", "transformers", "uvicorn", "llama_cpp_python")


def main(arguments: Sequence[str]) -> int:
    """Runs one benchmark; returns the exit status."""
    options = _parser().parse_args(list(arguments))
    command = shlex.join(["winnow", "bench", *arguments])
    try:
        with model_folder(options.model) as folder:
            here = machine(PACKAGES, threads=options.threads)
            print(describe(here), file=sys.stderr)
            before, found = CpuTime.now(), []
            for section in options.run(options, folder, here):
                found.append(section)
                stolen = before.stolen_share(CpuTime.now())
                report = _report(here, stolen, command, found)
                numbers = _json(here, stolen, command, found)
                if options.output:  # what there is so far
                    (options.output / "README.md").write_text(report + "\n")
                    (options.output / "results.json").write_bytes(numbers)
    except (ParityError, ServingError) as error:
        print(f"winnow bench: {error}", file=sys.stderr)
        return 1
    except (CheckpointError, ConfigError, msgspec.ValidationError) as error:
        print(f"winnow bench: {error}", file=sys.stderr)
        return 2
    print(report)
    if options.json:
        options.json.write_bytes(numbers)
    return int(not all(section.results for section in found))


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, but for options that are off without one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        off = action.default is None or action.default is False
        return action.help if off else super()._get_help_string(action)


def _at_least(lowest: int, kind: type[int] | type[float] = int) -> Callable[[str], float]:
    """The type of an option for numbers from `lowest` on."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {kind.__name__}") from None
        if not value >= lowest:
            raise argparse.ArgumentTypeError(f"{text} is too small; it must be at least {lowest}")
        return value

    return read


positive, not_negative, at_least_two = _at_least(1), _at_least(0), _at_least(2)


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no folder")
    return Path(text)


def _new_file(text: str) -> Path:
    return _folder(str(Path(text).parent)) / Path(text).name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="winnow bench",
        description="Measure this machine's steps, alone and beside other implementations.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(output=None)
    commands = parser.add_subparsers(required=True, metavar="benchmark")
    add = partial(commands.add_parser, formatter_class=_Help)

    step = add("step", help="one decode step and one prefill, taken apart")
    _common(step, _step)
    _clock(step)
    _model_settings(step)
    _many(step, "--batch", [1, 8, 32], "sequences")
    _many(step, "--context", [128, 512], "tokens of each")
    _number(step, "--steps", 30, "decode steps measured")
    _number(step, "--temperature", 0.0, "0: greedy", _at_least(0, float))
    _number(step, "--repeats", 3, "prefills measured; 0: decode only", not_negative)
    step.add_argument("--profile", action="store_true", help="list the operators of a step")
    _number(step, "--top", 25, "operators listed")

    beside = add("peers", help="generation beside others, parity first")
    _common(beside, _peers)
    _many(beside, "--batch", [1, 8, 32], "sequences")
    _many(beside, "--prompt", [128, 512], "tokens of each")
    _number(beside, "--tokens", 32, "generated per sequence, at least 2", at_least_two)
    _number(beside, "--repeats", 3, "of every batch and prompt, the engines in turn")

    serve = add("serve", help="clients over HTTP, beside transformers serve")
    _common(serve, _serve)
    _many(serve, "--clients", [1, 8], "at once")
    _number(serve, "--requests", 2, "of each client")
    _number(serve, "--prompt", 128, "tokens of a message")
    _number(serve, "--tokens", 64, "generated per request")
    serve.add_argument("--alone", action="store_true", help="do not start transformers serve")

    growth = add("context", help="decode steps over the context, sparse and dense")
    _common(growth, _context)
    _clock(growth)
    _many(growth, "--context", contexts.CONTEXTS, "tokens")
    _number(growth, "--steps", 30, "decode steps measured")
    growth.add_argument("--plot", type=_new_file, help="draw them into this file")

    forms = add("forms", help="prefill with keys expanded, and absorbed")
    _common(forms, _forms)
    _clock(forms)
    _many(forms, "--context", FORM_CONTEXTS, "tokens of the prompt", at_least_two)
    _number(forms, "--repeats", 3, "of both forms in turn")

    layers = add("model", help="few layers of full width, random FP8 weights")
    layers.set_defaults(run=_model, model="embedded")
    _number(layers, "--layers", 6, "of the model")
    layers.add_argument("--config", choices=("v3.2", "tiny"), default="v3.2", help="widths")
    _many(layers, "--batch", [1, 64], "sequences")
    _many(layers, "--context", [2048, 8192, 32768, 131072], "tokens of each")
    _number(layers, "--chunk", 4096, "tokens of a prefill step")
    _number(layers, "--steps", 20, "measured of each shape")
    layers.add_argument("--enforce-eager", action="store_true", help="no CUDA graphs")
    _threads_and_json(layers)

    streams = add("api", help="streams of the API, beside a bare server")
    streams.set_defaults(run=_api, model="embedded", threads=1)
    _number(streams, "--streams", 256, "at once")
    _number(streams, "--tokens", 512, "of each, at least 2", at_least_two)
    _number(streams, "--rounds", 5, "of both servers in turn")
    _number(streams, "--idle", 1000, "streams that wait", not_negative)
    streams.add_argument("--json", type=_new_file, help="also write the results to this file")

    everything = add("all", help="peers, serve, step, forms and context, as in docs/benchmarks")
    everything.set_defaults(run=_all, model="embedded")
    _threads_and_json(everything)
    everything.add_argument(
        "--output", type=_folder, default="docs/benchmarks", help="write README.md and more here"
    )
    everything.add_argument("--alone", action="store_true", help="do not start transformers serve")
    return parser


def _number(
    parser: argparse.ArgumentParser,
    flag: str,
    default: float,
    what: str,
    kind: Callable[[str], float] = positive,
) -> None:
    parser.add_argument(flag, type=kind, default=default, metavar="N", help=what)


def _many(
    parser: argparse.ArgumentParser,
    flag: str,
    default: Sequence[int],
    what: str,
    kind: Callable[[str], float] = positive,
) -> None:
    parser.add_argument(flag, type=kind, nargs="+", default=list(default), metavar="N", help=what)


def _common(parser: argparse.ArgumentParser, run: Any) -> None:
    parser.set_defaults(run=run)
    parser.add_argument("--model", default="mid", help="mid, embedded or a folder")
    _threads_and_json(parser)


def _threads_and_json(parser: argparse.ArgumentParser) -> None:
    _number(parser, "--threads", cores() or torch.get_num_threads(), "of a CPU, for every engine")
    parser.add_argument("--json", type=_new_file, help="also write the results to this file")


def _clock(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--clock", choices=tuple(CLOCKS), default="wall", help="cpu: this process's own time"
    )


def _model_settings(parser: argparse.ArgumentParser) -> None:
    choose: Any = partial(parser.add_argument, default="auto")
    choose("--attention", choices=("auto", "sparse", "dense"), help="as of winnow serve")
    choose("--dtype", choices=("auto", "float32", "bfloat16"), help="of weights and products")
    parser.add_argument("--batch-invariant", action="store_true", help="the same bits in any batch")


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


def _all(options: argparse.Namespace, folder: Path, here: Machine) -> Iterator[Section]:
    """Every benchmark with its defaults, on both models; plots go into --output.

    One that fails says so in its place, without results, and the others go on.
    """
    parser = _parser()
    commands = [
        *(f"peers --model {model} --repeats 2" for model in MODELS),
        *(f"serve --model {model}{' --alone' * options.alone}" for model in MODELS),
        "step --profile --top 12",
        "forms",
        f"context --plot {options.output / 'context.svg'}",
    ]
    for command in commands:
        print(f"winnow bench {command}", file=sys.stderr)
        one = parser.parse_args([*command.split(), "--threads", str(options.threads)])
        try:
            with model_folder(one.model) as folder:
                sections: list[Section] = one.run(one, folder, here)
        except (ParityError, ServingError) as error:
            sections = [Section(command.split()[0].capitalize(), f"Failed: {error}", [])]
        for section in sections:
            text = f"`winnow bench {command}`\n\n{section.text}"
            if section.results and getattr(one, "plot", None):
                text += f"\n\n![{section.title}]({one.plot.name})"
            yield Section(f"{section.title}: {one.model}", text, section.results)


def _report(here: Machine, stolen: float, command: str, found: Sequence[Section]) -> str:
    parts = [f"# `{command}`", f"{describe(here)}. {disturbance(stolen)}"]
    for section in found:
        parts += [f"## {section.title}", section.text]
    return "\n\n".join(parts)


def _json(here: Machine, stolen: float, command: str, found: Sequence[Section]) -> bytes:
    results = {section.title: section.results for section in found}
    report = {"command": command, "machine": here, "stolen_share": stolen, "results": results}
    return msgspec.json.format(msgspec.json.encode(report), indent=1)

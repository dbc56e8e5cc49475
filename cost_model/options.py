"""The options of `winnow cost`; an error says which option, and what it allows."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import msgspec

from cost_model.costs import LONGEST_TOKENS
from cost_model.machines import MACHINES
from cost_model.presets import PRESETS
from cost_model.trajectory import LONGEST_STEPS, ToolLoop
from cost_model.work import CacheDtype, WeightDtype

EPILOG = """\
commands:
{commands}

examples:
  winnow cost figure3 --plot figure3.png
  winnow cost request --prompt 32000 --cached 24000 --output 1200 --gpu h800 --price 2
  winnow cost trajectory --steps 20 --reasoning 800 --tool-result 4000
  winnow cost compare v3.1 v3.2 --at-cost 0.2
  winnow cost capacity --gpu h200 --gpus 16 --context 65536 --json

`winnow cost <command> --help` explains a command.
"""
PRESET_HELP = "paper, roofline or a .json table of operator times (default: paper)."
PLOT_FORMATS = (".png", ".svg")
MOST = 1 << 24
"""Pages or requests: a million tokens for a thousand users."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wide enough for an option and one line about it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=100)


def tokens(text: str) -> int:
    """A number of tokens, `32000` or `32_000`."""
    return _integer(text, 0, LONGEST_TOKENS, " tokens")


def count(text: str) -> int:
    """A number of GPUs or steps."""
    return _integer(text, 1, LONGEST_STEPS)


def many(text: str) -> int:
    """A number of pages or requests."""
    return _integer(text, 1, MOST)


def positions(text: str) -> list[int]:
    """Positions separated by commas: `0,2048,131071`."""
    return [_integer(one, 0, LONGEST_TOKENS, ", separated by commas") for one in text.split(",")]


def usd(text: str) -> float:
    """Dollars: 0 and above."""
    value = _real(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: 0 and above, USD")
    return value


def share(text: str) -> float:
    """A share: above 0, at most 1."""
    value = _real(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: above 0, at most 1")
    return value


def plot_file(text: str) -> Path:
    """A file to draw into; its ending chooses the format."""
    path = Path(text)
    if path.suffix.lower() not in PLOT_FORMATS:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a file ending in .png or .svg")
    return path


def parser() -> argparse.ArgumentParser:
    """The parser of every command; what it parsed names the command in `command`."""
    listed = "\n".join(f"  {name:<11} {what}" for name, (what, *_) in COMMANDS.items())
    root = argparse.ArgumentParser(
        prog="winnow cost",
        usage="winnow cost <command> [options]",
        description="What tokens, requests, tool loops and machines cost.",
        epilog=EPILOG.format(commands=listed),
        formatter_class=HelpFormatter,
    )
    # argparse would break the names of the commands from what they do.
    commands = root.add_subparsers(required=True, dest="command", help=argparse.SUPPRESS)
    for name, (what, arguments, add) in COMMANDS.items():
        one = commands.add_parser(
            name,
            prog=f"winnow cost {name}",
            usage=" ".join(["winnow cost", name, *arguments, "[options]"]),
            description=f"{what[0].upper()}{what[1:]}.",
            formatter_class=HelpFormatter,
        )
        add(one)
    return root


def _add_figure3(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is asked about")
    group.add_argument(
        "--preset",
        nargs="+",
        default=list(PRESETS),
        metavar="PRESET",
        help="paper, roofline, a .json table of operator times (default: paper roofline).",
    )
    _add_positions(group)
    _add_output(parser, plot=True)


def _add_request(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the request")
    group.add_argument(
        "--prompt", type=tokens, required=True, metavar="TOKENS", help="Prompt tokens."
    )
    group.add_argument(
        "--cached",
        type=tokens,
        default=0,
        metavar="TOKENS",
        help="Of these, found in the prefix cache (default: 0).",
    )
    group.add_argument(
        "--output", type=tokens, required=True, metavar="TOKENS", help="Output tokens."
    )
    _add_preset(parser)
    _add_output(parser, plot=True)


def _add_trajectory(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the tool loop")
    group.add_argument(
        "--steps", type=count, required=True, metavar="N", help="Model calls, the answer included."
    )
    texts = {
        "prompt": "System text, tools and the user's message",
        "reasoning": "Reasoning of each step",
        "call": "A tool call, or the answer",
        "tool_result": "What a tool answers",
        "window": "Longest context",
    }
    defaults = {field.name: field.default for field in msgspec.structs.fields(ToolLoop)}
    for name, text in texts.items():
        group.add_argument(
            "--" + name.replace("_", "-"),
            type=tokens,
            default=defaults[name],
            metavar="TOKENS",
            help=f"{text} (default: {defaults[name]}).",
        )
    group.add_argument(
        "--discard",
        type=share,
        default=defaults["discard"],
        metavar="SHARE",
        help="Of the tool history that policy `managed` drops when the window is full "
        f"(default: {defaults['discard']}).",
    )
    _add_preset(parser)
    _add_output(parser, plot=True)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models", nargs=2, metavar="MODEL", help="v3.1, v3.2 or a checkpoint's folder."
    )
    group = parser.add_argument_group("where")
    _add_positions(group)
    group.add_argument(
        "--at-cost",
        type=usd,
        metavar="USD",
        help="Also find where each model's token costs this much per million.",
    )
    _add_preset(parser, model=False)
    _add_output(parser, plot=True)


def _add_capacity(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the group of GPUs")
    _add_machine(group)
    group.add_argument("--gpus", type=count, required=True, metavar="N", help="GPUs.")
    group.add_argument(
        "--context", type=tokens, required=True, metavar="TOKENS", help="Of each sequence."
    )
    _add_model(group)
    group = parser.add_argument_group("memory")
    for flag, kinds, what in (
        ("--dtype", WeightDtype, "Weights"),
        ("--kv-cache-dtype", CacheDtype, "Latents in the cache"),
        ("--index-dtype", CacheDtype, "Index keys in the cache"),
    ):
        group.add_argument(
            flag, choices=get_args(kinds), default="fp8", help=f"{what} (default: fp8)."
        )
    group.add_argument(
        "--gpu-memory-utilization",
        type=share,
        default=0.9,
        metavar="SHARE",
        help="Of the memory that weights and pages may fill (default: 0.9).",
    )
    _add_output(parser, plot=True)


def _add_json(parser: argparse.ArgumentParser) -> None:
    _add_output(parser, plot=False)


def _add_systems(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is asked about")
    group.add_argument("--preset", default="paper", metavar="PRESET", help=PRESET_HELP)
    _add_output(parser, plot=False)


def _add_preset(parser: argparse.ArgumentParser, *, model: bool = True) -> None:
    group = parser.add_argument_group("what is asked about")
    group.add_argument("--preset", default="paper", metavar="PRESET", help=PRESET_HELP)
    if model:
        _add_model(group)
    _add_machine(group)


def _add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model", metavar="MODEL", help="v3.1, v3.2 or a checkpoint's folder (default: v3.2)."
    )


def _add_machine(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--gpu",
        metavar="GPU",
        help=f"{', '.join(MACHINES)} or a .json data sheet (default: h800).",
    )
    group.add_argument(
        "--price",
        type=usd,
        metavar="USD",
        help="USD per GPU-hour (default: the data sheet's, 2 for GPUs).",
    )


def _add_positions(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--positions",
        type=positions,
        metavar="N,N,...",
        help="Token positions to show (default: about a dozen up to 131071).",
    )


def _add_output(parser: argparse.ArgumentParser, *, plot: bool) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="Print JSON instead of text.")
    if plot:
        group.add_argument(
            "--plot", type=plot_file, metavar="FILE", help="Draw a .png or .svg as well."
        )


def _integer(text: str, low: int, high: int, what: str = "") -> int:
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: {low} to {high}{what}")
    return value


def _real(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a number") from None


COMMANDS: dict[str, tuple[str, list[str], Callable[[argparse.ArgumentParser], None]]] = {
    "figure3": ("the curves of figure 3 of the report, by preset", [], _add_figure3),
    "request": ("one request by phase and component", [], _add_request),
    "trajectory": ("a tool loop: reasoning kept, dropped, managed", [], _add_trajectory),
    "compare": ("two models: costs, means, break-evens", ["MODEL MODEL"], _add_compare),
    "capacity": ("what GPUs hold and decode at a context length", [], _add_capacity),
    "derivation": ("constants of preset paper, from the figure's slopes", [], _add_json),
    "inputs": ("published numbers behind preset roofline", [], _add_json),
    "systems": ("published systems beside a preset", [], _add_systems),
    "measure": ("measure this machine's data sheet", [], _add_json),
}
"""Command -> what it answers, its arguments, and what adds its options."""

"""The options of `winnow load`; an error says which option, and what it allows."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import NoReturn

from cost_model.options import HelpFormatter, count, usd
from loadtest.live.arrivals import ARRIVALS
from loadtest.live.profiles import PROFILES
from loadtest.live.verdict import ExitStatus
from loadtest.options import seconds

DESCRIPTION = """\
Puts a server that speaks OpenAI's chat completions under load, measures what its clients see, and
holds it to targets: latency, goodput, and cost per million tokens.

In a closed loop (--users) each user waits for its answer; in an open loop (--rate, --trace)
sessions come at their times, whatever became of the ones before.
"""
EPILOG = """\
profiles:
{profiles}

exit status:
  0  every target was kept            2  a target was missed
  3  no data for the targets          1  the run could not begin, or broke

examples:
  winnow load --serve --users 10 --scale 0.03 --pace 0.02 --targets loadtest/targets.toml
  winnow load http://gpu:8000 --profile agents --users 64 --duration 600 --report load.html
  winnow load http://gpu:8000 --rate 4 --arrivals gamma --cv 3 --web 8089
  winnow load http://gpu:8000 --trace conversation_trace.jsonl --speed 2
  winnow load http://other:8000 --price 2 --gpus 8 --cost-preset paper --users 32
"""


class Parser(argparse.ArgumentParser):
    """Ends with FAILED on a bad command line: 2 says that a target was missed."""

    def error(self, message: str) -> NoReturn:
        self.print_usage()
        self.exit(ExitStatus.FAILED, f"{self.prog}: {message}\n")


def parser() -> Parser:
    """The parser of `winnow load`."""
    profiles = "\n".join(f"  {name:<13} {one.about}" for name, one in PROFILES.items())
    root = Parser(
        prog="winnow load",
        usage="winnow load [URL | --serve] [options]",
        description=DESCRIPTION,
        epilog=EPILOG.format(profiles=profiles),
        formatter_class=HelpFormatter,
    )
    _add_server(root.add_argument_group("the server"))
    _add_load(root.add_argument_group("what is sent"))
    _add_time(root.add_argument_group("how long"))
    _add_cost(root.add_argument_group("cost"))
    _add_output(root.add_argument_group("output"))
    return root


def _add_server(group: argparse._ArgumentGroup) -> None:
    group.add_argument("url", nargs="?", metavar="URL", help="Of the server, with or without /v1.")
    group.add_argument(
        "--serve",
        nargs="?",
        const="",
        type=shlex.split,
        metavar="OPTIONS",
        help="Start `winnow serve` with these options for the test; without a --model among "
        "them, of the embedded checkpoint.",
    )
    group.add_argument("--model", help="Of those that the server serves (default: the only one).")
    group.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="File whose first line is a key."
    )
    group.add_argument(
        "--metrics-url",
        metavar="URL",
        help="Where Winnow's /metrics is (default: beside the API; with none, cost needs --price).",
    )
    group.add_argument(
        "--extensions",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="The server takes `ignore_eos` and `thinking`, so that answers can be as long as "
        "profile and trace say (default: if it is Winnow).",
    )


def _add_load(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--profile", choices=tuple(PROFILES), default="mixed", help="See below (default: mixed)."
    )
    group.add_argument(
        "--trace", type=Path, metavar="FILE", help="Replay one in Mooncake's or Azure's format."
    )
    group.add_argument("--requests", type=count, metavar="N", help="Only the first N of it.")
    group.add_argument(
        "--speed",
        type=seconds,
        default=1.0,
        metavar="FACTOR",
        help="The trace so many times as fast (default: 1).",
    )
    group.add_argument("--users", type=count, metavar="N", help="Of a closed loop (default: 8).")
    group.add_argument(
        "--ramp",
        type=_not_negative,
        default=0.0,
        metavar="S",
        help="Until all are there.",
    )
    group.add_argument(
        "--rate", type=seconds, metavar="R", help="Open loop: so many sessions a second."
    )
    group.add_argument(
        "--arrivals",
        choices=ARRIVALS,
        default="poisson",
        help="Default: poisson.",
    )
    group.add_argument(
        "--cv",
        type=seconds,
        default=1.0,
        metavar="CV",
        help="Coefficient of variation of gamma's gaps: above 1 come bursts (default: 1).",
    )
    group.add_argument(
        "--scale",
        type=seconds,
        default=1.0,
        metavar="FACTOR",
        help="All lengths in tokens times this (default: 1).",
    )
    group.add_argument(
        "--pace",
        type=seconds,
        default=1.0,
        metavar="FACTOR",
        help="The time that users think and tools run times this (default: 1).",
    )
    group.add_argument("--seed", type=int, default=0, help="Of everything random (default: 0).")


def _add_time(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--duration", type=seconds, metavar="S", help="Of sending (default: 120, or the trace's)."
    )
    group.add_argument(
        "--warm-up",
        type=_not_negative,
        default=0.0,
        metavar="S",
        help="Left out of the figures at least (default: 0).",
    )
    group.add_argument(
        "--drain",
        type=_not_negative,
        default=60.0,
        metavar="S",
        help="For answers in flight at the end (default: 60).",
    )
    group.add_argument(
        "--silence-limit",
        type=seconds,
        default=120.0,
        metavar="S",
        help="A stream that is silent for so long has failed (default: 120).",
    )


def _add_cost(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--price",
        type=usd,
        metavar="USD",
        help="Per GPU-hour (default: what Winnow says; other servers have no cost without it).",
    )
    group.add_argument(
        "--gpus", type=count, default=1, metavar="N", help="That serve this load (default: 1)."
    )
    group.add_argument(
        "--cost-preset",
        metavar="PRESET",
        help="Of `winnow cost`, to hold another server's cost against.",
    )
    group.add_argument("--cost-model", metavar="MODEL", help="What it is about (default: v3.2).")
    group.add_argument("--cost-gpu", metavar="GPU", help="And on what (default: h800).")


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--targets", type=Path, metavar="FILE", help="TOML file of what to keep.")
    group.add_argument("--report", type=Path, metavar="FILE", help="Write one HTML file.")
    group.add_argument("--json", action="store_true", help="Print JSON instead of text.")
    group.add_argument(
        "--samples", type=Path, metavar="FILE", help="Write all requests as JSON lines."
    )
    group.add_argument(
        "--web",
        type=_host_port,
        metavar="[HOST:]PORT",
        help="Serve locust's web page with our charts while the test runs; 0 takes a free port.",
    )


def _not_negative(text: str) -> float:
    if text.strip() in ("0", "0.0"):
        return 0.0
    try:
        return seconds(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: 0 and above") from None


def _host_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: PORT or HOST:PORT, PORT up to 65535")
    return host.strip("[]") or "127.0.0.1", int(port)

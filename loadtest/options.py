"""The options of `winnow simulate`."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from cost_model.machines import MACHINES
from cost_model.options import HelpFormatter, count, many, plot_file, tokens, usd

DESCRIPTION = """\
Serves a trace, or agents that wait for their answers, by the scheduler that serves for real, on a
virtual clock: steps take the seconds of the cost model (preset roofline).

--gpus N is one replica over N GPUs, as in `winnow cost capacity`: attention and its weights are on
every GPU, the routed experts are spread over all of them, and the pages of all GPUs are one pool. A
step's tokens are divided among the GPUs evenly; reading weights every GPU does in full. Imbalance
between GPUs and time on the network are not in it, nor are drafted tokens.
"""
EPILOG = """\
traces:
  Mooncake  one JSON object a line: timestamp (ms), input_length, output_length, hash_ids
  Azure     CSV with the header TIMESTAMP,ContextTokens,GeneratedTokens

examples:
  winnow simulate trace.jsonl --gpu h800 --gpus 32 --plot run.png
  winnow simulate trace.jsonl --speed 3 --deadline 5
  winnow simulate --agents 100 --duration 900 --gpu h200 --gpus 8 --plain-lru
  winnow simulate trace.jsonl --record run.jsonl.gz
  winnow simulate --replay run.jsonl.gz
"""


def seconds(text: str) -> float:
    """Seconds or a factor: above 0, finite."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a number above 0")
    return value


def parser() -> argparse.ArgumentParser:
    """The parser of `winnow simulate`."""
    root = argparse.ArgumentParser(
        prog="winnow simulate",
        usage="winnow simulate [TRACE | --agents N | --replay FILE] [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    _add_load(root.add_argument_group("what comes"))
    _add_replica(root.add_argument_group("what serves it"))
    _add_output(root.add_argument_group("output"))
    return root


def _add_load(group: argparse._ArgumentGroup) -> None:
    group.add_argument("trace", nargs="?", type=Path, metavar="TRACE", help="A trace file.")
    group.add_argument(
        "--agents", type=count, metavar="N", help="Made-up agent conversations, N at a time."
    )
    group.add_argument(
        "--duration",
        type=seconds,
        default=900.0,
        metavar="S",
        help="Seconds in which agents send requests (default: 900).",
    )
    group.add_argument(
        "--reasoning-of",
        choices=("turn", "step"),
        default="turn",
        help="200 to 2,000 tokens of reasoning are a turn's, or each step's (default: turn).",
    )
    group.add_argument("--seed", type=int, default=0, help="Of the conversations (default: 0).")
    group.add_argument(
        "--requests", type=many, metavar="N", help="Only the first N requests of the trace."
    )
    group.add_argument(
        "--speed",
        type=seconds,
        default=1.0,
        metavar="FACTOR",
        help="The trace so many times as fast (default: 1).",
    )
    group.add_argument(
        "--tenants", type=count, default=1, metavar="N", help="Share the load among N (default: 1)."
    )
    group.add_argument(
        "--measure-from",
        type=float,
        default=0.0,
        metavar="S",
        help="Leave requests that arrive earlier out of the figures (default: 0).",
    )


def _add_replica(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--gpu",
        default="h800",
        metavar="GPU",
        help=f"{', '.join(MACHINES)} or a .json data sheet (default: h800).",
    )
    group.add_argument(
        "--gpus", type=count, default=32, metavar="N", help="Of one replica (default: 32)."
    )
    group.add_argument(
        "--model",
        default="v3.2",
        metavar="MODEL",
        help="v3.1, v3.2 or a folder with a config.json (default: v3.2).",
    )
    group.add_argument(
        "--price",
        type=usd,
        metavar="USD",
        help="USD per GPU-hour (default: the data sheet's, 2 for GPUs).",
    )
    group.add_argument(
        "--pages",
        type=many,
        metavar="N",
        help="Pages of 64 tokens (default: what the GPUs' memory holds).",
    )
    group.add_argument(
        "--max-model-len", type=tokens, default=1 << 17, metavar="TOKENS", help="Default: 131072."
    )
    group.add_argument(
        "--inter-token-target",
        type=seconds,
        default=0.05,
        metavar="S",
        help="Longest step while answers stream (default: 0.05).",
    )
    group.add_argument(
        "--first-token-target",
        type=seconds,
        default=10.0,
        metavar="S",
        help="What goodput asks of the first token (default: 10).",
    )
    group.add_argument(
        "--deadline",
        type=seconds,
        metavar="S",
        help="Refuse a request whose first token would come later (default: none).",
    )
    group.add_argument(
        "--queue",
        type=seconds,
        default=10.0,
        metavar="S",
        help="Prompt tokens that may wait, in seconds of computing them (default: 10).",
    )
    group.add_argument(
        "--plain-lru",
        action="store_true",
        help="No retention: nothing is told when a turn ends, pages go least recently used first.",
    )
    group.add_argument("--no-pre-warm", action="store_true", help="Retention without pre-warming.")


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--json", action="store_true", help="Print JSON instead of text.")
    group.add_argument("--plot", type=plot_file, metavar="FILE", help="Draw a .png or .svg.")
    group.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="Write every decision down, gzipped when FILE ends in .gz.",
    )
    group.add_argument(
        "--replay", type=Path, metavar="FILE", help="Make a recording's decisions again; compare."
    )

"""What metrics cost, and how soon a dead engine is replaced: `python -m benchmarks.metrics`.

    metrics        at most 2 % of the time of a step of 256 rows, and at most 400 series
    a scrape       delays no token by more than 5 ms
    a dead engine  new requests are answered within 10 s

All of it in one run: steps of the engine's own loop (`benchmarks.metrics_steps`), then a server
with one stream, one scraper and one engine that is killed (`benchmarks.metrics_live`).
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch

from benchmarks.checkpoint import model_folder
from benchmarks.metrics_live import PERCENTILES, Live, measure_live
from benchmarks.metrics_steps import Scrape, Steps, measure_scrape, measure_steps
from benchmarks.report import CpuTime, describe, disturbance, machine, table

COST_LIMIT, SERIES_LIMIT = 0.02, 400
DELAY_LIMIT_S, RECOVERY_LIMIT_S = 0.005, 10.0
Row = tuple[str, str, str]


class Results(msgspec.Struct, frozen=True):
    """What `--json` writes."""

    steps: Steps
    scrape: Scrape
    live: Live


def main(arguments: Sequence[str]) -> int:
    """Prints the table; returns the exit status: 0, whatever was measured."""
    options = _parser().parse_args(list(arguments))
    torch.set_num_threads(options.threads)
    print(f"{describe(machine(['torch', 'msgspec', 'uvicorn'], threads=options.threads))}\n")
    before = CpuTime.now()
    gc.collect()
    gc.freeze()
    with model_folder(options.model) as folder:
        steps, reported = measure_steps(
            folder,
            rows=options.rows,
            context=options.context,
            rounds=options.rounds,
            steps=options.steps,
            clock=options.clock,
        )
        scrape = measure_scrape(folder, reported, options.scrapes)
        live = measure_live(
            folder,
            phases=options.phases,
            tokens=options.tokens,
            kills=options.kills,
            threads=options.threads,
        )
    rows = [*_of_steps(steps, options.rows), *_of_scrapes(scrape, live), *_of_kills(live)]
    print(table(("", "measured", "promised"), rows))
    print(f"\n{disturbance(before.stolen_share(CpuTime.now()))}")
    if options.json:
        found = msgspec.json.encode(Results(steps, scrape, live))
        options.json.write_bytes(msgspec.json.format(found, indent=1))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.metrics",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="embedded", help="mid, embedded or a folder")
    parser.add_argument("--rows", type=int, default=256, help="of a step")
    parser.add_argument("--context", type=int, default=256, help="tokens of each row")
    parser.add_argument("--rounds", type=int, default=8, help="with metrics, and as many without")
    parser.add_argument("--steps", type=int, default=20, help="of a round")
    parser.add_argument("--scrapes", type=int, default=200, help="of which the longest hold counts")
    parser.add_argument("--phases", type=int, default=6, help="streams that a scraper disturbs")
    parser.add_argument("--tokens", type=int, default=2000, help="of a stream")
    parser.add_argument("--kills", type=int, default=3, help="engines that are killed")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the engine")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    return parser


def _of_steps(steps: Steps, rows: int) -> list[Row]:
    return [
        (f"a step of {rows} rows, metrics off", f"{1e3 * steps.off_s:.2f} ms", ""),
        (
            "the same, metrics on, interleaved with it",
            f"{1e3 * steps.on_s:.2f} ms ({steps.on_s / steps.off_s - 1:+.2%})",
            "",
        ),
        (
            "in it, what the engine does for metrics",
            f"{1e6 * steps.engine_s:.0f} us ({steps.engine_s / steps.off_s:.3%})",
            f"<= {COST_LIMIT:.0%}",
        ),
        (
            "besides, what the API's process does for them",
            f"{1e6 * steps.api_s:.0f} us ({steps.api_s / steps.off_s:.3%})",
            "",
        ),
        (
            f"both would be {COST_LIMIT:.0%} of a step of",
            f"{1e3 * (steps.engine_s + steps.api_s) / COST_LIMIT:.1f} ms",
            "",
        ),
    ]


def _of_scrapes(scrape: Scrape, live: Live) -> list[Row]:
    rows = [
        (
            "series of a server that has answered",
            f"{live.series}",
            f"<= {SERIES_LIMIT}",
        ),
        ("writing all metrics", f"{1e3 * scrape.whole_s:.1f} ms", ""),
        (
            f"others wait in it for at most (of {scrape.count} scrapes)",
            f"{1e3 * scrape.longest_hold_s:.2f} ms",
            f"<= {1e3 * DELAY_LIMIT_S:g} ms",
        ),
    ]
    for name, alone_s, scraped_s in zip(PERCENTILES, live.alone_s, live.scraped_s, strict=True):
        found = f"{1e3 * alone_s:.2f} -> {1e3 * scraped_s:.2f} ms"
        rows.append(
            (
                f"gap between tokens without -> with a scraper, {name}",
                f"{found} ({1e3 * (scraped_s - alone_s):+.2f} ms)",
                "",
            )
        )
    rows.append(
        ("  gaps of each, scrapes a second", f"{live.gaps:,}, {live.scrapes_per_s:.0f}", "")
    )
    return rows


def _of_kills(live: Live) -> list[Row]:
    times = ", ".join(f"{seconds:.1f}" for seconds in live.recoveries_s)
    limit = f"<= {RECOVERY_LIMIT_S:g} s"
    return [("from the death of an engine to the next answer", f"{times} s", limit)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

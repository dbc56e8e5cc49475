"""What a scheduling decision costs: `python -m benchmarks.scheduler`.

Plan and commit of decode steps, admission of a prompt that is wholly in the cache, and eviction,
each beside the number this project set itself. No model runs: tokens are made up. Everything is on:
prefix caching, fairness, the time budget with a calibrated predictor.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Literal

from benchmarks.report import CpuTime, describe, disturbance, machine, table
from cost_model.predictor import StepCoefficients, StepPredictor
from scheduler.config import SchedulerConfig
from scheduler.forms import FormPolicy
from scheduler.pages import PagePool
from scheduler.plan import StepResult
from scheduler.request import Sampling
from scheduler.scheduler import Scheduler

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
PAGE_TOKENS = 64
CONTEXT_TOKENS = 4096
HIT_TOKENS = 8000
EVICTED_PAGES = 25
NEVER_ENDS = Sampling(max_tokens=100_000, ignore_eos=True)
Bound = tuple[float, Literal["us", "ms"]]


def main(arguments: Sequence[str]) -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scheduler", description=__doc__)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--steps", type=int, default=640, help="decode steps measured")
    parser.add_argument("--repeats", type=int, default=50, help="admissions measured")
    parser.add_argument("--entries", type=int, default=50_000, help="cached pages to evict from")
    options = parser.parse_args(list(arguments))
    now = CLOCKS[options.clock]
    print(f"{describe(machine(['msgspec']))}; {options.clock} clock\n")
    before = CpuTime.now()
    gc.collect()
    gc.freeze()
    lines = []
    for rows in (1, 32, 256):
        steps_s = decode_step(rows, options.steps, now)
        lines.append(_line(f"plan + commit, {rows} decode rows", steps_s, (500, "us"), now))
        rows_s = [step_s / rows for step_s in steps_s]
        lines.append(_line("  per row", rows_s, (2, "us") if rows > 1 else None, now))
    outside_s, inside_s, plain_s = full_hit(options.repeats, now)
    hit = f"admit {HIT_TOKENS:,} tokens, all cached"
    lines.append(_line(f"{hit}: outside the loop", outside_s, (0.3, "ms"), now))
    lines.append(_line("  inside: submit and first plan", inside_s, (30, "us"), now))
    lines.append(_line("  of which not for the hit (one page)", plain_s, None, now))
    for name, length in (("one page each", 1), ("125 pages each", 125)):
        evict_s = evict(options.entries, length, now)
        what = f"evict a page of {options.entries:,}, chains of {name}"
        lines.append(_line(what, evict_s, (1, "us"), now))
    print(table(("", "measured", "least", "target"), lines))
    print(f"\n{disturbance(before.stolen_share(CpuTime.now()))}")
    return 0


def scheduler(rows: int, total_pages: int) -> Scheduler:
    """A replica's scheduler, its predictor calibrated by made-up steps as it runs."""
    coefficients = StepCoefficients(
        decode_token_s=1e-5,
        decode_context_token_s=1e-9,
        decode_selected_token_s=1e-9,
        prefill_token_s=1e-6,
        prefill_context_token_s=1e-10,
        prefill_selected_token_s=1e-10,
        row_s=1e-7,
        step_s=1e-3,
    )
    config = SchedulerConfig(
        total_pages=total_pages,
        page_tokens=PAGE_TOKENS,
        max_model_len=total_pages * PAGE_TOKENS,
        max_num_seqs=rows,
        max_num_batched_tokens=1 << 20,
        max_queued_requests=1024,
        indexer_workspace_bytes=1 << 40,
        forms=FormPolicy("auto", top_k=2048, break_even_tokens=6963),
        eos_token_ids=(1,),
        inter_token_target_s=0.05,
        cost_doubling_tokens=1 << 17,
    )
    return Scheduler(config, StepPredictor(coefficients, 2048))


def decode_step(rows: int, steps: int, now: Callable[[], float]) -> list[float]:
    """Seconds of each plan and commit with `rows` answers, over whole pages of steps."""
    pages = rows * (CONTEXT_TOKENS + 2 * steps) // PAGE_TOKENS + rows
    pages += pages // 10  # new turns leave a reserve
    replica = scheduler(rows, pages)
    for row in range(rows):
        # Different lengths, so that pages fill in different steps.
        replica.submit(str(row), [row + 2] * (CONTEXT_TOKENS + row % PAGE_TOKENS), NEVER_ENDS)
    while replica.backlog_tokens:
        _commit(replica)
    times = []
    for _ in range(steps):
        begin = now()
        plan = replica.plan()
        planned = now()
        result = StepResult(plan.step, [7] * rows, [None] * rows, 0.01)
        ready = now()
        replica.commit(result)
        times.append(now() - ready + planned - begin)
    return times


def full_hit(
    repeats: int, now: Callable[[], float]
) -> tuple[list[float], list[float], list[float]]:
    """Seconds of hashing a cached prompt, of its way into the loop, and of a short one's."""
    replica = scheduler(2, 4 * HIT_TOKENS // PAGE_TOKENS)
    tokens = [n % 1000 for n in range(HIT_TOKENS)]
    _admit(replica, "first", tokens, now)
    hits = [_admit(replica, f"hit {n}", tokens, now) for n in range(repeats)]
    short = [_admit(replica, f"short {n}", tokens[:PAGE_TOKENS], now) for n in range(repeats)]
    return [out for out, _ in hits], [inside for _, inside in hits], [inside for _, inside in short]


def _admit(
    replica: Scheduler, name: str, tokens: list[int], now: Callable[[], float]
) -> tuple[float, float]:
    begin = now()
    keys = replica.prompt_keys(tokens, "", "")
    hashed = now()
    replica.submit(name, tokens, Sampling(max_tokens=1, ignore_eos=True), keys=keys)
    plan = replica.plan()
    planned = now()
    count = len(plan.rows)
    replica.commit(StepResult(plan.step, [7] * count, [None] * count, 0.01))
    while replica.has_work:
        _commit(replica)
    return hashed - begin, planned - hashed


def _commit(replica: Scheduler) -> None:
    plan = replica.plan()
    tokens = [7 if row.sample == "last" else -1 for row in plan.rows]
    replica.commit(StepResult(plan.step, tokens, [None] * len(tokens), 0.01))


def evict(entries: int, length: int, now: Callable[[], float]) -> list[float]:
    """Seconds per page of evicting half of a full cache, in chains of `length` pages, by allocation
    of EVICTED_PAGES."""
    pool = PagePool(entries, doubling_pages=2048)
    for chain in range(entries // length):
        pages = pool.allocate(length)
        run = None
        for place, page in enumerate(pages):
            key = chain.to_bytes(8, "little") + place.to_bytes(8, "little")
            run = pool.publish(page, key, run)
        pool.release(run, idle_class="dead" if chain % 3 == 0 else "stable")
    times = []
    for _ in range(entries // 2 // EVICTED_PAGES):
        begin = now()
        pool.allocate(EVICTED_PAGES)
        times.append((now() - begin) / EVICTED_PAGES)
    return times


def _line(
    name: str, times: list[float], target: Bound | None, now: Callable[[], float]
) -> tuple[str, str, str, str]:
    """The median and the least, which nobody disturbed; on the CPU clock, which is coarse, the
    mean."""
    unit = "us" if target is None else target[1]
    scale = {"us": 1e6, "ms": 1e3}[unit]
    coarse = now is time.process_time
    typical = statistics.fmean(times) if coarse else statistics.median(times)
    least = "" if coarse else f"{min(times) * scale:.2f} {unit}"
    wanted = "" if target is None else f"<= {target[0]:g} {unit}"
    return name, f"{typical * scale:.2f} {unit}", least, wanted


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""One step taken apart: planning, batch building, the forward pass, sampling, committing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor
from tqdm import tqdm

from engine.config import PAGE_TOKENS, EngineConfig
from engine.loading import Replica, load_replica
from engine.runner import Runner
from scheduler.config import SchedulerConfig
from scheduler.plan import Row, StepPlan
from scheduler.request import Sampling
from scheduler.scheduler import Scheduler

Clock = Literal["wall", "cpu"]
CLOCKS: dict[Clock, Callable[[], float]] = {
    "wall": time.perf_counter,
    "cpu": time.process_time,
}
"""wall: what a user waits for. cpu: what this process computed, for a machine that is not quiet."""

FILL_SLOTS = 1 << 14
"""Cache slots filled at once with random rows."""


class StepTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Medians over the measured steps, in seconds."""

    plan_s: float
    batch_s: float
    """Mirrors and tensors of the batch, before the model runs."""
    forward_s: float
    sample_s: float
    """From logits to tokens and logprobs."""
    commit_s: float
    step_s: float

    @property
    def overhead_s(self) -> float:
        """What a step costs outside the model."""
        return self.step_s - self.forward_s


class Stopwatch:
    """Runs steps of one replica and notes when each part began."""

    def __init__(self, scheduler: Scheduler, runner: Runner, clock: Clock) -> None:
        self.scheduler, self.runner, self.now = scheduler, runner, CLOCKS[clock]
        self._compute, self._forward = runner.compute, runner.model.forward
        self._forward_times: tuple[float, float] | None = None
        self.steps: list[tuple[float, ...]] = []

    def __enter__(self) -> Stopwatch:
        self.runner.compute = self._timed_compute  # type: ignore[method-assign]
        self.runner.model.forward = self._timed_forward  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.compute = self._compute  # type: ignore[method-assign]
        self.runner.model.forward = self._forward  # type: ignore[method-assign]

    def _timed_compute(self, rows: tuple[Row, ...]) -> Tensor:
        self._forward_times, begin = None, self.now()
        logits = self._compute(rows)
        if self._forward_times is None:  # a captured graph was replayed
            self._forward_times = (begin, self.now())
        return logits

    def _timed_forward(self, *args: Any) -> Tensor:
        begin = self.now()
        logits = self._forward(*args)
        self._forward_times = (begin, self.now())
        return logits

    def step(self) -> None:
        """Plans, executes and commits one step."""
        begin = self.now()
        plan = self.scheduler.plan()
        planned = self.now()
        result = self.runner.execute(plan)
        executed = self.now()
        self.scheduler.commit(result)
        forward = self._forward_times or (planned, planned)
        self.steps.append((begin, planned, *forward, executed, self.now()))

    def times(self) -> StepTimes:
        """Returns the medians of the steps so far."""
        parts = [[b - a for a, b in pairwise(s)] for s in self.steps]
        plan, batch, forward, sample, commit = map(statistics.median, zip(*parts, strict=True))
        return StepTimes(
            plan_s=plan,
            batch_s=batch,
            forward_s=forward,
            sample_s=sample,
            commit_s=commit,
            step_s=statistics.median(s[-1] - s[0] for s in self.steps),
        )


def load(
    folder: Path, *, sequences: int, tokens: int, step_tokens: int = 512, **settings: Any
) -> Replica:
    """Returns a replica for `sequences` sequences of `tokens` tokens, without prefix caching."""
    window = -(-tokens // PAGE_TOKENS) * PAGE_TOKENS
    config = {
        "model": str(folder),
        "max_num_seqs": sequences,
        "max_model_len": window,
        "max_num_batched_tokens": step_tokens,
        "indexer_workspace_bytes": 1 << 30,
        "enable_prefix_caching": False,
        **settings,
    }
    return load_replica(msgspec.convert(config, EngineConfig), progress=False)


def prompt(tokens: int, vocab_size: int, seed: int) -> list[int]:
    """Returns a random prompt; the first ids are left out, since control tokens stand there."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(16, vocab_size, (tokens,), generator=generator).tolist()
    return ids


def decode_stopwatch(
    replica: Replica, *, batch: int, context: int, clock: Clock, sampling: Sampling
) -> Stopwatch:
    """Returns a stopwatch whose replica decodes `batch` sequences at `context` tokens each.

    The prompts are not computed: their cache slots are filled with random rows of the size that
    norms give, since the time of a step depends on their number and not on their values.
    """
    runner, vocab = replica.runner, replica.model.vocab_size
    # The budget of a step is lifted for the one step that admits every prompt.
    limits = msgspec.structs.replace(
        replica.scheduler.config,
        max_num_batched_tokens=batch * context,
        indexer_workspace_bytes=1 << 62,
    )
    scheduler = Scheduler(limits)
    for i in range(batch):
        answer = scheduler.submit(str(i), prompt(context, vocab, i), sampling)
        if not isinstance(answer, int):
            raise ValueError(answer.message)
    fill_cache(runner)
    plan = scheduler.plan()
    last = tuple(
        msgspec.structs.replace(
            row, start=context - 1, count=1, form=limits.forms.form(context - 1, 1)
        )
        for row in plan.rows
    )
    skipped = runner.execute(StepPlan(plan.step, last, plan.prepare, plan.forget))
    scheduler.commit(skipped)
    return Stopwatch(scheduler, runner, clock)


def fill_cache(runner: Runner) -> None:
    """Fills latent rows and index keys of every layer with seeded random values."""
    cache, config = runner.cache, runner.model.config
    generator = torch.Generator().manual_seed(0)
    slots = cache.total_pages * PAGE_TOKENS
    widths = (config.kv_lora_rank, config.qk_rope_head_dim, config.index_head_dim)
    for begin in range(0, slots, FILL_SLOTS):
        some = torch.arange(begin, min(slots, begin + FILL_SLOTS))
        latents, ropes, keys = (
            torch.randn(some.shape[0], width, generator=generator) for width in widths
        )
        for layer in range(config.num_hidden_layers):
            cache.latents.write(layer, some, latents, ropes)
            cache.index_keys.write(layer, some, keys)


def measure_decode(
    replica: Replica,
    *,
    batch: int,
    context: int,
    steps: int,
    warm_up: int = 5,
    clock: Clock = "wall",
    temperature: float = 0.0,
) -> StepTimes:
    """Returns the times of one decode step of `batch` sequences at `context` tokens."""
    total = warm_up + steps
    sampling = Sampling(max_tokens=total + 2, temperature=temperature, ignore_eos=True)
    watch = decode_stopwatch(replica, batch=batch, context=context, clock=clock, sampling=sampling)
    with watch:
        for i in tqdm(range(total), desc=f"decode {batch} x {context}", leave=False):
            if i == warm_up:
                watch.steps.clear()
            watch.step()
    drain(watch.scheduler, watch.runner)
    return watch.times()


def measure_prefill(
    replica: Replica,
    *,
    batch: int,
    context: int,
    repeats: int = 3,
    clock: Clock = "wall",
    config: SchedulerConfig | None = None,
) -> float:
    """Returns the seconds to prefill `batch` prompts of `context` tokens, all steps together.

    The median of `repeats`, after one that is not counted; the first tokens are sampled too.
    config: the scheduler's, the replica's own by default.
    """
    vocab, now = replica.model.vocab_size, CLOCKS[clock]
    once = Sampling(max_tokens=1, temperature=0.0, ignore_eos=True)
    times = []
    for _ in tqdm(range(1 + repeats), desc=f"prefill {batch} x {context}", leave=False):
        scheduler = Scheduler(config or replica.scheduler.config)
        begin = now()
        for i in range(batch):
            scheduler.submit(str(i), prompt(context, vocab, i), once)
        while scheduler.has_work:
            scheduler.commit(replica.runner.execute(scheduler.plan()))
        times.append(now() - begin)
    return statistics.median(times[1:])


def drain(scheduler: Scheduler, runner: Runner) -> None:
    """Ends every sequence, so that the replica can be used again."""
    for sequence in list(scheduler.running):
        scheduler.abort(sequence.request_id)
    while scheduler.has_work:
        scheduler.commit(runner.execute(scheduler.plan()))

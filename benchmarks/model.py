"""`winnow bench model`: layers of full width, few of them, with random weights made on the device.

What a layer of the 671B model takes in decode and prefill, beside the sum of its kernels, and how a
decode step grows with the context beside what the index keys' bytes explain.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import msgspec
import torch
from tqdm import tqdm

from benchmarks.random_model import (
    Config,
    check_memory,
    fill_cache,
    model_config,
    random_network,
)
from benchmarks.report import milliseconds, table
from benchmarks.sections import Section
from benchmarks.step import prompt
from engine.cache import CacheLayout, PagedCache
from engine.config import PAGE_TOKENS, ConfigError
from engine.hopper.support import obstacle
from engine.model_config import ModelConfig
from engine.runner import Runner
from kernels.cache import CacheDtype, index_key_bytes
from scheduler.forms import FormPolicy, break_even_tokens
from scheduler.plan import NewSlot, Prepare, Row, StepPlan
from scheduler.request import Sampling

COPIED_BYTES = 2**30
WARM_UPS = 3


class StepLine(msgspec.Struct, frozen=True, kw_only=True):
    """A step of one shape: medians in seconds."""

    phase: Literal["decode", "prefill"]
    rows: int
    tokens: int
    """Of each row."""
    context: int
    """Positions before the step."""
    step_s: float
    """From the plan to the sampled tokens."""
    layer_s: float
    """The device's time for one layer, with what it waits between kernels: a step's, less the
    kernels of embedding, head and sampling."""
    kernels_s: float | None
    """The sum of a layer's kernels, by the profiler; None on the CPU."""


class Growth(msgspec.Struct, frozen=True):
    """How a decode step grows from the shortest context to the longest."""

    rows: int
    shortest: int
    longest: int
    grown_s: float
    index_bytes_s: float
    """Reading the further index keys at the speed of a copy."""


def run(
    *,
    config: Config,
    layers: int,
    batches: Sequence[int],
    contexts: Sequence[int],
    chunk: int,
    steps: int,
    eager: bool,
) -> Section:
    """Measures; raises ConfigError, with the numbers, where the device cannot run it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model_config(config, layers, device)
    longest = max(contexts) + max(chunk, steps + WARM_UPS)
    if longest > model.max_position_embeddings:
        raise ConfigError(
            f"--context {max(contexts)} and --chunk {chunk} reach position {longest}; "
            f"the model has {model.max_position_embeddings}"
        )
    bench = ModelBench(model, device, max(batches), longest, eager)
    lines: list[StepLine] = []
    shapes = [(rows, context) for rows in batches for context in contexts]
    for rows, context in tqdm(shapes, desc="decode", leave=False):
        lines.append(bench.measure("decode", rows, 1, context, steps))
    for context in tqdm([0, *contexts], desc="prefill", leave=False):
        lines.append(bench.measure("prefill", 1, chunk, context, steps))
    growths = [bench.growth([one for one in lines if one.rows == rows]) for rows in batches]
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    title = f"{config}, {layers} layers, {where}, {bench.kind}"
    return Section(title, _text(lines, growths), [*lines, *growths])


class ModelBench:
    """A model of random weights on its device, with a full cache, and how long its steps take."""

    def __init__(
        self, model: ModelConfig, device: torch.device, rows: int, longest: int, eager: bool
    ) -> None:
        self.model, self.device, self.longest = model, device, longest
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        compute: CacheDtype = "float32" if device.type == "cpu" else "fp8"
        self.layout = CacheLayout(compute, compute)
        pages = rows * -(-longest // PAGE_TOKENS)
        check_memory(model, self.layout, pages, device)
        reason = obstacle(model, self.layout, dtype, device)
        self.kind = "kernels for Hopper" if reason is None else f"PyTorch ({reason})"
        self.network = random_network(model, device, dtype, kernels=reason is None)
        cache = PagedCache(model, self.layout, pages, compute_dtype=dtype, device=device)
        self.runner = (
            self._runner(cache, rows, eager) if reason is None else Runner(self.network, cache)
        )
        fill_cache(cache)
        break_even = break_even_tokens(
            top_k=model.index_topk,
            kv_lora_rank=model.kv_lora_rank,
            qk_rope=model.qk_rope_head_dim,
            qk_nope=model.qk_nope_head_dim,
            v_head=model.v_head_dim,
        )
        self.forms = FormPolicy("auto", model.index_topk, break_even)

    def _runner(self, cache: PagedCache, rows: int, eager: bool) -> Runner:
        from engine.hopper.graphs import buckets  # needs triton
        from engine.hopper.runner import HopperRunner

        runner = HopperRunner(
            self.network,
            cache,
            max_num_seqs=rows,
            max_num_batched_tokens=self.longest,
            max_model_len=self.longest,
        )
        if not eager:
            runner.capture(buckets(rows, self.longest, self.model.index_topk, dense=False))
        return runner

    def measure(
        self, phase: Literal["decode", "prefill"], rows: int, tokens: int, context: int, steps: int
    ) -> StepLine:
        """Returns the medians of `steps` steps of `rows` rows with `context` tokens behind them."""
        self._start(rows, context + tokens)
        form = self.forms.form(context, tokens)
        some = tuple(
            Row(slot=slot, start=context, count=tokens, sample="last", form=form)
            for slot in range(rows)
        )
        plan = StepPlan(step=0, rows=some)
        walls = []
        for _ in range(WARM_UPS + steps):
            begin = time.perf_counter()
            self.runner.execute(plan)
            walls.append(time.perf_counter() - begin)

        layer_s, kernels_s = self.layer_seconds(some, steps)
        return StepLine(
            phase=phase,
            rows=rows,
            tokens=tokens,
            context=context,
            step_s=statistics.median(walls[WARM_UPS:]),
            layer_s=layer_s,
            kernels_s=kernels_s,
        )

    @torch.inference_mode()
    def layer_seconds(self, rows: tuple[Row, ...], steps: int) -> tuple[float, float | None]:
        """Returns a layer's share of a step of these rows, and the sum of a layer's kernels.

        Of the step only what embedding and head keep the device busy is subtracted. Their launches
        are not: those of few kernels take longer than the kernels, and a graph has none.
        """
        served, launched = self._on_device(rows)
        whole_s, kernels_s = self._device_seconds(served, steps), self._kernel_seconds(launched)
        with self._without_layers():
            outside_s = self._kernel_seconds(launched)
            if outside_s is None:
                outside_s = self._device_seconds(launched, steps)
        depth = self.model.num_hidden_layers
        busy_s = None if kernels_s is None else (kernels_s - outside_s) / depth
        return (whole_s - outside_s) / depth, busy_s

    def _on_device(
        self, rows: tuple[Row, ...]
    ) -> tuple[Callable[[], object], Callable[[], object]]:
        """Brings a step's integers to the device; returns what it runs there: as it is served, by a
        graph if there is one, and kernel by kernel."""
        runner: Any = self.runner
        if graphs := getattr(runner, "graphs", None):
            bucket = graphs.find(rows)
            if bucket is not None:
                runner.send_decode(bucket, rows)
                return partial(graphs.replay, bucket), partial(graphs.launch, bucket)
        forward = partial(self.network.forward, runner.batch(rows), runner.cache)
        return forward, forward

    @contextmanager
    def _without_layers(self) -> Iterator[None]:
        """The network is embedding, last norm and head for a while."""
        network: Any = self.network
        layers, network.layers = network.layers, []
        try:
            yield
        finally:
            network.layers = layers

    def growth(self, lines: Sequence[StepLine]) -> Growth:
        """Returns how decode grows over the contexts of lines of one number of rows."""
        decodes = [line for line in lines if line.phase == "decode"]
        first = min(decodes, key=lambda line: line.context)
        last = max(decodes, key=lambda line: line.context)
        key_bytes = index_key_bytes(self.model.index_head_dim, self.layout.index)
        depth = self.model.num_hidden_layers
        further = first.rows * (last.context - first.context) * key_bytes * depth
        return Growth(
            first.rows,
            first.context,
            last.context,
            (last.layer_s - first.layer_s) * depth,
            further / self._copy_bytes_per_s(),
        )

    def _start(self, rows: int, tokens: int) -> None:
        """Gives `rows` slots pages for `tokens` tokens; what stands in them is random."""
        each = -(-tokens // PAGE_TOKENS)
        ids = prompt(tokens, self.model.vocab_size, 0)
        endless = Sampling(max_tokens=1 << 30, temperature=0.0, ignore_eos=True)
        new = tuple(
            NewSlot(
                slot=slot,
                request_id=f"{slot}",
                choice=0,
                token_ids=ids,
                prompt_tokens=tokens,
                sampling=endless,
                pages=list(range(slot * each, (slot + 1) * each)),
            )
            for slot in range(rows)
        )
        forget = tuple(self.runner.slots)
        self.runner.execute(StepPlan(step=0, rows=(), prepare=Prepare(new), forget=forget))

    @torch.inference_mode()
    def _device_seconds(self, run: Callable[[], object], steps: int) -> float:
        times = []
        for _ in range(WARM_UPS + steps):
            if self.device.type == "cpu":
                begin = time.perf_counter()
                run()
                times.append(time.perf_counter() - begin)
                continue
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            stop.record()
            torch.cuda.synchronize(self.device)
            times.append(start.elapsed_time(stop) / 1e3)
        return statistics.median(times[WARM_UPS:])

    @torch.inference_mode()
    def _kernel_seconds(self, run: Callable[[], object]) -> float | None:
        """Sum of the kernels' own durations, copies between host and device left out."""
        if self.device.type == "cpu":
            return None
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            run()
            torch.cuda.synchronize(self.device)
        return sum(
            event.self_device_time_total / 1e6
            for event in profile.key_averages()
            if not event.key.startswith("Memcpy HtoD")
        )

    def _copy_bytes_per_s(self) -> float:
        source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * COPIED_BYTES / self._device_seconds(lambda: target.copy_(source), 5)


def _text(lines: Sequence[StepLine], growths: Sequence[Growth]) -> str:
    header = ["step", "ms", "layer ms", "its kernels ms", "layer / kernels"]
    rows = []
    for line in lines:
        kernels = line.kernels_s
        rows.append(
            [
                f"{line.phase} {line.rows} x {line.tokens} at {line.context:,}",
                milliseconds(line.step_s),
                milliseconds(line.layer_s),
                "" if kernels is None else milliseconds(kernels),
                "" if kernels is None else f"{line.layer_s / kernels:.2f}",
            ]
        )
    text = [table(header, rows)]
    for growth in growths:
        if growth.longest > growth.shortest:
            text.append(
                f"Decode of {growth.rows} from {growth.shortest:,} to {growth.longest:,}: "
                f"{milliseconds(growth.grown_s)} ms more, "
                f"{growth.grown_s / growth.index_bytes_s:.2f} times the "
                f"{milliseconds(growth.index_bytes_s)} ms that reading the index keys takes."
            )
    return "\n\n".join(text)


def section(options: Any) -> Section:
    """What `winnow bench model` prints."""
    return run(
        config=options.config,
        layers=options.layers,
        batches=options.batch,
        contexts=options.context,
        chunk=options.chunk,
        steps=options.steps,
        eager=options.enforce_eager,
    )

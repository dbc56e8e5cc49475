"""Steps of the engine's own loop with and without metrics, and how long scrapes hold up others."""

from __future__ import annotations

import asyncio
import statistics
import time
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import msgspec

from api.backend import Backend
from api.config import ServerConfig
from api.metrics.cost import Costs
from api.metrics.exposition import Exposition
from api.metrics.steps import StepCounts
from api.metrics.values import Values
from api.server import create_app
from benchmarks.step import CLOCKS, Clock, decode_stopwatch, load
from cost_model.shape import ModelShape
from engine.core import EngineCore
from engine.heap import set_heap_aside
from engine.messages import FromEngine, Outputs, Ready, Shutdown, Snapshot, ToEngine
from engine.messages import Steps as StepsMessage
from engine.runner import Runner
from engine.step_stats import StepRecorder
from scheduler.request import Sampling
from scheduler.scheduler import Scheduler

SPARE_STEPS = 8
"""Of each round, beside those that count: the first ones begin everything anew."""


class Steps(msgspec.Struct, frozen=True):
    """Medians of a step, in seconds of the chosen clock; the last two always of processor time."""

    off_s: float
    on_s: float
    engine_s: float
    """In the step loop and in the thread that writes: taking down, encoding."""
    api_s: float
    """In another process: decoding, histograms, prices."""


class Reported(msgspec.Struct, frozen=True):
    """What the engine has sent, encoded."""

    steps: list[bytes]
    snapshot: bytes


class Scrape(msgspec.Struct, frozen=True):
    """Writing `/metrics` in an event loop that has something else to do."""

    count: int
    whole_s: float
    """Median."""
    longest_hold_s: float
    """In which nothing else ran; processor time of this thread, the largest of all scrapes."""


class Nothing(StepRecorder):
    """The engine's loop without metrics."""

    def submitted(self, *_: Any) -> None:
        """Changes nothing, as the next ones."""

    def step(self, *_: Any, **__: Any) -> None:
        pass

    def ended(self, *_: Any) -> None:
        pass

    def take(self) -> None:
        return None


class Timed(StepRecorder):
    """The one of production, with a clock around it."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def step(self, *arguments: Any, **fields: Any) -> None:
        begin = time.thread_time()
        super().step(*arguments, **fields)
        self.seconds += time.thread_time() - begin

    def ended(self, *arguments: Any) -> None:
        begin = time.thread_time()
        super().ended(*arguments)
        self.seconds += time.thread_time() - begin


class Loop:
    """Runs the engine's loop for some steps, with one recorder or the other."""

    def __init__(self, scheduler: Scheduler, runner: Runner, clock: Clock) -> None:
        self._scheduler, self._runner, self._now = scheduler, runner, CLOCKS[clock]
        self._encoder = msgspec.msgpack.Encoder()
        self.messages: list[bytes] = []
        self.snapshot = b""
        self.engine_s = 0.0
        self.recorded_steps = 0

    def run(self, steps: int, recorder: StepRecorder) -> list[float]:
        """Returns the times of `steps` steps, each from one step's tokens to the next one's."""
        inbox: SimpleQueue[ToEngine | None] = SimpleQueue()
        moments: list[float] = []

        def send(message: FromEngine) -> None:
            match message:
                case Outputs():
                    moments.append(self._now())
                    if len(moments) == steps + SPARE_STEPS:
                        inbox.put(Shutdown())
                case StepsMessage():
                    begin = time.thread_time()
                    self.messages.append(self._encoder.encode(message))
                    self.engine_s += time.thread_time() - begin
                case Snapshot():
                    self.snapshot = self._encoder.encode(message)
                case _:
                    pass

        core = EngineCore(self._scheduler, self._runner, inbox, send)
        core.steps = recorder
        core.run()
        if (rest := recorder.take()) is not None:
            send(rest)
        if isinstance(recorder, Timed):
            self.engine_s += recorder.seconds
            self.recorded_steps += len(moments)
        return [after - before for before, after in pairwise(moments)][-steps:]


def measure_steps(
    folder: Path, *, rows: int, context: int, rounds: int, steps: int, clock: Clock
) -> tuple[Steps, Reported]:
    """Returns what a decode step of `rows` rows takes with and without metrics, in `rounds` rounds
    of `steps` steps each, in turn, and what metrics take of it; and what the engine reported."""
    total = 2 * rounds * (steps + SPARE_STEPS) + 1
    replica = load(folder, sequences=rows, tokens=context + total + SPARE_STEPS)
    endless = Sampling(max_tokens=total + SPARE_STEPS, temperature=0.0, ignore_eos=True)
    watch = decode_stopwatch(replica, batch=rows, context=context, clock=clock, sampling=endless)
    watch.scheduler.predictor = replica.scheduler.predictor
    set_heap_aside()  # as the engine's process does before its first step
    loop = Loop(watch.scheduler, watch.runner, clock)
    off: list[float] = []
    on: list[float] = []
    for number in range(rounds):
        # First the one, then the other: what grows with the context meets both alike.
        for recorded in (False, True) if number % 2 else (True, False):
            (on if recorded else off).extend(loop.run(steps, Timed() if recorded else Nothing()))
    found = Steps(
        off_s=statistics.median(off),
        on_s=statistics.median(on),
        engine_s=loop.engine_s / loop.recorded_steps,
        api_s=_counting_s(_costs(folder), loop.messages) / loop.recorded_steps,
    )
    return found, Reported(loop.messages, loop.snapshot)


def measure_scrape(folder: Path, reported: Reported, count: int) -> Scrape:
    """Returns what `count` scrapes take of a server whose engine has reported that."""
    backend = Backend(("benchmark",))
    create_app(backend, ServerConfig())
    engine: Any = SimpleNamespace(
        alive=True,
        ready=Ready("deepseek_v32", 4096, 131072, 64, 1024, {"weights": 1, "cache": 1}, "cpu", "f"),
        snapshot=msgspec.msgpack.decode(reported.snapshot, type=Snapshot),
        heard_s=0.0,
    )
    backend.metrics.attach(engine, _costs(folder), inter_token_target_s=0.05)
    for message in reported.steps:
        engine.on_steps(msgspec.msgpack.decode(message, type=StepsMessage))
    whole, hold_s = asyncio.run(_scrapes(Exposition(backend.metrics), count))
    return Scrape(count, statistics.median(whole), hold_s)


async def _scrapes(exposition: Exposition, count: int) -> tuple[list[float], float]:
    whole, holds = [], []
    for _ in range(count):
        scrape = asyncio.create_task(exposition.text())
        begin = before = time.thread_time()
        while not scrape.done():
            await asyncio.sleep(0)
            now = time.thread_time()
            holds.append(now - before)
            before = now
        whole.append(before - begin)
    return whole, max(holds)


def _counting_s(costs: Costs, messages: list[bytes]) -> float:
    """Seconds to read the messages and add them up."""
    counts = StepCounts(Values(), costs)
    decoder = msgspec.msgpack.Decoder(StepsMessage)
    begin = time.thread_time()
    for message in messages:
        counts.take(decoder.decode(message))
    return time.thread_time() - begin


def _costs(folder: Path) -> Costs:
    return Costs.of(ModelShape.from_folder(folder), "cpu", None, 131072)

"""How a decode step grows with the context, sparse and dense."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import msgspec
from tqdm import tqdm

from benchmarks.report import milliseconds, table
from benchmarks.step import Clock, Stopwatch, decode_stopwatch, drain, load
from engine.attention import Indexer
from kernels.topk import top_k_positions
from scheduler.request import Sampling

CONTEXTS = (1024, 4096, 16384, 65536)
Kind = Literal["sparse", "dense"]
KINDS: tuple[Kind, ...] = ("sparse", "dense")
TURN_STEPS = 10
"""Steps that one kind measures before the other's turn, after one that is not counted."""
NOTE = "Dense steps gather the latents of the whole context at once, not in blocks."


class ContextTime(msgspec.Struct, frozen=True):
    """The median decode step of one sequence, in seconds."""

    attention: Kind
    context: int
    step_s: float
    indexer_s: float
    """Of it, the index scores and the top-k of all layers; 0 without selection."""


def over_context(
    folder: Path, contexts: list[int], *, steps: int, clock: Clock, **settings: Any
) -> list[ContextTime]:
    """Returns the step times of one sequence at each context, with and without selection.

    At each context the two take turns of TURN_STEPS.
    """
    endless = Sampling(max_tokens=1 << 30, temperature=0.0, ignore_eos=True)
    found = []
    for context in tqdm(contexts, desc="contexts", leave=False):
        watches: dict[Kind, Stopwatch] = {}
        for kind in KINDS:
            tokens = context + 2 * steps + 16
            replica = load(folder, sequences=1, tokens=tokens, attention=kind, **settings)
            shape: dict[str, Any] = {"batch": 1, "context": context, "clock": clock}
            watches[kind] = decode_stopwatch(replica, **shape, sampling=endless)
        indexer_s: dict[Kind, list[float]] = {kind: [] for kind in KINDS}
        for done in range(0, steps, TURN_STEPS):
            for kind, watch in watches.items():
                indexer_s[kind] += _turn(watch, min(TURN_STEPS, steps - done))
        for kind, watch in watches.items():
            median_s = statistics.median(indexer_s[kind])
            found.append(ContextTime(kind, context, watch.times().step_s, median_s))
            drain(watch.scheduler, watch.runner)
    return found


def _turn(watch: Stopwatch, steps: int) -> list[float]:
    """Runs one step that is not counted and `steps` that are; returns the indexer's seconds."""
    with watch, _indexer_calls(watch.now) as calls:
        watch.step()
        watch.steps.pop()
        seconds = []
        for _ in range(steps):
            calls.clear()
            watch.step()
            seconds.append(sum(calls))
    return seconds


@contextmanager
def _indexer_calls(now: Callable[[], float]) -> Iterator[list[float]]:
    """Yields a list of what each scoring and each selection inside the block takes, in seconds."""
    calls: list[float] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            begin = now()
            result = function(*arguments, **named)
            calls.append(now() - begin)
            return result

        return call

    with (
        patch.object(Indexer, "scores", timed(Indexer.scores)),
        patch("engine.attention.top_k_positions", timed(top_k_positions)),
    ):
        yield calls


def growth_table(found: list[ContextTime]) -> str:
    """Returns the growth of the step over the context, beside what the indexer explains of it.

    predicted: the step at the first context, with the indexer's part of this one.
    """
    kinds = [[one for one in found if one.attention == kind] for kind in KINDS]
    first, first_dense = kinds[0][0], kinds[1][0]
    rows = []
    for sparse, dense in zip(*kinds, strict=True):
        predicted_s = first.step_s + sparse.indexer_s - first.indexer_s
        rows.append(
            [
                f"{sparse.context:,}",
                milliseconds(sparse.step_s),
                milliseconds(sparse.indexer_s),
                f"{sparse.step_s / first.step_s:.2f}x",
                milliseconds(predicted_s),
                f"{sparse.step_s / predicted_s:.2f}x",
                milliseconds(dense.step_s),
                f"{dense.step_s / first_dense.step_s:.2f}x",
            ]
        )
    header = ["context", "sparse, ms", "of that scores + top-k", "growth"]
    header += ["predicted, ms", "measured / predicted", "dense, ms", "growth"]
    return (
        f"{table(header, rows)}\n\nPredicted is the first line's step with this line's scores and "
        f"top-k: what the indexer explains. {NOTE}"
    )


def plot(found: list[ContextTime], file: Path, caption: str) -> None:
    """Draws the step times into `file`; its ending names the format. Needs matplotlib."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for attention in KINDS:
        line = [one for one in found if one.attention == attention]
        axes.plot(
            [one.context for one in line],
            [one.step_s * 1e3 for one in line],
            marker="o",
            label=attention,
        )
    axes.set(xscale="log", yscale="log", ylabel="decode step, ms")
    axes.set_xlabel(f"context, tokens\n{NOTE}", fontsize="small")
    ticks = sorted({one.context for one in found})
    axes.set_xticks(ticks, [_label(tokens) for tokens in ticks])
    axes.set_title(caption, fontsize="small")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file)
    pyplot.close(figure)


def _label(tokens: int) -> str:
    return f"{tokens:,}" if tokens % 1024 else f"{tokens // 1024}K"

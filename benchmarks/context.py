"""How a decode step grows with the context, sparse and dense."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from benchmarks.step import Clock, load, measure_decode

CONTEXTS = (1024, 4096, 16384, 65536)
Kind = Literal["sparse", "dense"]
KINDS: tuple[Kind, ...] = ("sparse", "dense")


class ContextTime(msgspec.Struct, frozen=True):
    """The median decode step of one sequence, in seconds."""

    attention: Kind
    context: int
    step_s: float


def over_context(
    folder: Path, contexts: list[int], *, steps: int, clock: Clock, **settings: Any
) -> list[ContextTime]:
    """Returns the step times of one sequence at each context, with and without selection."""
    found = []
    for attention in KINDS:
        for context in contexts:
            replica = load(
                folder, sequences=1, tokens=context + steps + 16, attention=attention, **settings
            )
            times = measure_decode(replica, batch=1, context=context, steps=steps, clock=clock)
            found.append(ContextTime(attention, context, times.step_s))
    return found


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
    axes.set(xscale="log", yscale="log", xlabel="context, tokens", ylabel="decode step, ms")
    axes.set_xticks([one.context for one in found], [f"{one.context // 1024}K" for one in found])
    axes.set_title(caption, fontsize="small")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file)
    pyplot.close(figure)

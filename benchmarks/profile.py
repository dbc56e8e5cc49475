"""Where a decode step's microseconds go, operator by operator."""

from __future__ import annotations

import msgspec
from torch.profiler import ProfilerActivity, profile

from benchmarks.step import Stopwatch


class OperatorTime(msgspec.Struct, frozen=True):
    """One operator's share of a step."""

    name: str
    shapes: str
    """Of its tensor inputs, those without shape left out."""
    calls: float
    """Per step."""
    self_us: float
    """Per step, without the operators it calls; includes the profiler's own cost, which is
    largest where many small operators run."""


def operators(watch: Stopwatch, steps: int, *, by_shape: bool = True) -> list[OperatorTime]:
    """Runs `steps` steps under torch's profiler; returns the operators, dearest first."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=by_shape) as recorded:
        for _ in range(steps):
            watch.step()
    found = [
        OperatorTime(
            event.key,
            " ".join("x".join(map(str, s)) for s in event.input_shapes or () if s),
            event.count / steps,
            event.self_cpu_time_total / steps,
        )
        for event in recorded.key_averages(group_by_input_shape=by_shape)
    ]
    return sorted(found, key=lambda operator: operator.self_us, reverse=True)

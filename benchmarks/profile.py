"""Where a decode step's microseconds go, operator by operator."""

from __future__ import annotations

import time

import msgspec
from torch.profiler import ProfilerActivity, profile

from benchmarks.step import Stopwatch

OTHERS = "others"
BETWEEN = "between operators"
"""What is left of the steps' wall time: Python, and the profiler's own work around operators."""
PACKED_OPERAND = {"mkl::_mkl_linear": 1}
"""Operators with an operand whose shape says nothing, and its place."""


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


def operators(watch: Stopwatch, steps: int, *, top: int) -> list[OperatorTime]:
    """Runs `steps` steps under torch's profiler, after one that is not counted.

    Returns the `top` dearest operators, one line for all OTHERS, and one for the time BETWEEN them.
    """
    watch.step()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        begin = time.perf_counter()
        for _ in range(steps):
            watch.step()
        wall_us = (time.perf_counter() - begin) * 1e6 / steps
    found = [
        OperatorTime(
            event.key,
            _shapes(event.key, event.input_shapes or []),
            event.count / steps,
            event.self_cpu_time_total / steps,
        )
        for event in recorded.key_averages(group_by_input_shape=True)
    ]
    found.sort(key=lambda operator: operator.self_us, reverse=True)
    between_us = wall_us - sum(operator.self_us for operator in found)
    return [*folded(found, top), OperatorTime(BETWEEN, "", 0, between_us)]


def folded(found: list[OperatorTime], top: int) -> list[OperatorTime]:
    """Returns the first `top` operators, and all others as one."""
    rest = found[top:]
    if not rest:
        return found
    calls, self_us = sum(one.calls for one in rest), sum(one.self_us for one in rest)
    return [*found[:top], OperatorTime(OTHERS, "", calls, self_us)]


def _shapes(name: str, shapes: list[list[int]]) -> str:
    packed = PACKED_OPERAND.get(name)
    return " ".join("x".join(map(str, s)) for i, s in enumerate(shapes) if s and i != packed)

"""The part of a run that counts: between warming up and draining."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadtest.live.samples import Sample

GROWTH_ALLOWED = 1.5
"""Requests in flight in the last third of a steady run, at most so many times the first's."""


class Window(msgspec.Struct, frozen=True):
    """Half-open in time, seconds since the run began."""

    begin_s: float
    end_s: float
    in_flight_median: int = 0
    growth: float = 1.0
    """Mean requests in flight in the last third of the time in which was sent, warm-up left out,
    over that in its first."""

    @property
    def seconds(self) -> float:
        return self.end_s - self.begin_s

    @property
    def steady(self) -> bool:
        """False where requests pile up, so that latencies depend on how long one waits."""
        return self.growth <= GROWTH_ALLOWED

    def holds(self, at_s: float) -> bool:
        return self.begin_s <= at_s < self.end_s


def steady_window(
    samples: Sequence[Sample], *, begin_s: float, until_s: float, ended_s: float
) -> Window:
    """Returns the window of a run: from the first to the last moment that as many requests were in
    flight as in its median, by time.

    So the ramp-up at the start and the drain at the end are left out, and the ups and downs of
    random arrivals are not. begin_s: where the earliest window starts (the end of a warm-up).
    until_s: when sending stopped; the window ends there at the latest. ended_s: end of the run, for
    requests that never ended. A run without requests has an empty window.
    """
    times, in_flight = concurrency(samples, ended_s=ended_s)
    inside = (times >= begin_s) & (times < until_s)
    earlier = int(np.searchsorted(times, begin_s))
    before = in_flight[earlier - 1] if earlier else 0
    edges = np.concatenate(([begin_s], times[inside], [until_s]))
    levels = np.concatenate(([before], in_flight[inside]))
    widths = np.diff(edges)
    if not times.size or until_s <= begin_s or not levels.any():
        return Window(begin_s, begin_s)
    order = np.argsort(levels, kind="stable")
    passed = np.cumsum(widths[order])
    median = int(levels[order][np.searchsorted(passed, passed[-1] / 2)])
    held = np.flatnonzero((levels >= max(1, median)) & (widths > 0))
    if not held.size:
        # Requests, all of them over at once.
        return Window(begin_s, until_s)
    # Growth is looked for in all the time in which was sent: a window that starts at the median has
    # the lower half of it cut away.
    growth = _growth(edges, levels, Window(begin_s, until_s))
    return Window(float(edges[held[0]]), float(edges[held[-1] + 1]), median, growth)


def concurrency(
    samples: Iterable[Sample], *, ended_s: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Returns when the number of requests in flight changed, and the number from then on."""
    changes = [
        (at_s, by)
        for one in samples
        for at_s, by in ((one.sent_s, 1), (one.end_s if one.end_s >= 0 else ended_s, -1))
    ]
    # A request that begins where another ends never makes fewer than none.
    changes.sort(key=lambda change: (change[0], -change[1]))
    times = np.array([at_s for at_s, _ in changes])
    return times, np.cumsum([by for _, by in changes], dtype=np.int64)


def _growth(edges: NDArray[np.float64], levels: NDArray[np.int64], window: Window) -> float:
    third = window.seconds / 3
    first = _mean(edges, levels, window.begin_s, window.begin_s + third)
    last = _mean(edges, levels, window.end_s - third, window.end_s)
    return last / first if first else 1.0


def _mean(
    edges: NDArray[np.float64], levels: NDArray[np.int64], begin_s: float, end_s: float
) -> float:
    if end_s <= begin_s:
        return 0.0
    clipped = np.clip(edges, begin_s, end_s)
    return float((np.diff(clipped) * levels).sum() / (end_s - begin_s))

"""How late the load generator itself is: what it takes from a moment to notice that it has come.

Every chunk is stamped when the loop gets to it, so a loop that is late makes a server look slow.
A beat is due every BEAT_S; one that a busy loop delays also delays those after it, and each of
them counts by its own moment, or a long pause would look like one late beat among thousands.

Beside it stands how much of that time this process computed. The rest it was ready and another
process, or another tenant of the machine, had its core: that wants a quieter machine, the first
part fewer streams.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from loadtest.live.window import Window

BEAT_S = 0.01


class Lag:
    """Beats until it is stopped; run it in a thread or greenlet of its own."""

    def __init__(self) -> None:
        self.due_s: array[float] = array("d")
        self.late_s: array[float] = array("d")
        """As long as `due_s`."""
        self.computed_s: array[float] = array("d")
        """Of `late_s`, at most, as much as this process computed since the beat before."""
        self._running = True

    def run(
        self,
        start_s: float,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], object] = time.sleep,
        processor: Callable[[], float] = time.thread_time,
    ) -> None:
        """Beats. start_s: zero of its times, by `clock`. processor: what this thread computed."""
        due_s = clock() - start_s + BEAT_S
        slept = processor()
        while self._running:
            now_s = clock() - start_s
            if now_s < due_s:
                slept = processor()
                sleep(due_s - now_s)
                continue
            late_s = now_s - due_s
            self.due_s.append(due_s)
            self.late_s.append(late_s)
            self.computed_s.append(min(late_s, processor() - slept))
            due_s += BEAT_S

    def stop(self) -> None:
        self._running = False

    def inside(self, window: Window) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns the beats that were due in a window: how late, and what of it was computing."""
        due, late, computed = map(np.array, (self.due_s, self.late_s, self.computed_s))
        inside = (due >= window.begin_s) & (due < window.end_s)
        return late[inside], computed[inside]

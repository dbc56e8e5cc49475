"""Whether processes hold more and more memory."""

from __future__ import annotations

import contextlib
import time
from statistics import median
from typing import NamedTuple

from tests.soak.target import resident_bytes

GROWTH_LIMIT = 0.02
JUDGED_S = 240.0
"""A shorter stretch says nothing about memory."""
WARM_SHARE = 0.3
"""Of a stretch; what is held at its end is what is held after warm-up."""


class Check(NamedTuple):
    """One line of the table."""

    what: str
    found: str
    good: bool | None
    """None: the run was too short to say."""


class Memory:
    """Resident bytes of processes, once a second."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, int]] = []

    def sample(self, *pids: int | None) -> None:
        found = [pid for pid in pids if pid is not None]
        if found:
            with contextlib.suppress(OSError):  # one has just died
                self.take(time.monotonic(), sum(map(resident_bytes, found)))

    def take(self, at_s: float, size_bytes: int) -> None:
        """Adds a sample."""
        self._samples.append((at_s, size_bytes))

    def restart(self) -> None:
        self._samples.clear()

    def check(self, whose: str) -> Check:
        """Compares the median of the samples right after warm-up with that of the last ones."""
        what = f"resident memory of {whose}, growth <= {GROWTH_LIMIT:.0%}"
        samples = self._samples
        if len(samples) < 20:
            return Check(what, "not measured", None)
        seconds = samples[-1][0] - samples[0][0]
        warm = samples[int(len(samples) * WARM_SHARE) :]
        some = max(5, len(warm) // 5)
        before = median(size for _, size in warm[:some])
        after = median(size for _, size in warm[-some:])
        growth = after / before - 1
        found = f"{before / 2**20:.0f} -> {after / 2**20:.0f} MiB, {growth:+.1%}"
        return Check(what, found, growth <= GROWTH_LIMIT if seconds >= JUDGED_S else None)

"""The load generator's own lag, on a clock that tests turn."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.live.lag import BEAT_S, Lag
from loadtest.live.window import Window


class Clock:
    """Sleeps exactly, but for pauses that begin at given moments; of each, a tenth is computing."""

    def __init__(self, lag: Lag, pauses: dict[float, float], until_s: float) -> None:
        self.now_s, self._lag, self._until_s = 0.0, lag, until_s
        self.computed_s = 0.0
        self._pauses = sorted(pauses.items())

    def __call__(self) -> float:
        return self.now_s

    def processor(self) -> float:
        return self.computed_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        if self._pauses and self.now_s >= self._pauses[0][0]:
            pause_s = self._pauses.pop(0)[1]
            self.now_s += pause_s
            self.computed_s += pause_s / 10
        if self.now_s > self._until_s:
            self._lag.stop()


def beats(pauses: dict[float, float], until_s: float = 10.0) -> Lag:
    lag = Lag()
    clock = Clock(lag, pauses, until_s)
    lag.run(0.0, clock, clock.sleep, clock.processor)
    return lag


def test_a_loop_that_is_never_late() -> None:
    lag = beats({})
    assert len(lag.due_s) == pytest.approx(10 / BEAT_S, abs=2)
    assert max(lag.late_s) == pytest.approx(0, abs=1e-9)


def test_one_long_pause_makes_every_beat_in_it_late() -> None:
    lag = beats({5.0: 1.0})
    late = np.array(lag.late_s)
    assert late.max() == pytest.approx(1.0, abs=2 * BEAT_S)
    # A tenth of the time was lost, so the 95th percentile knows of it.
    assert (late > BEAT_S / 2).mean() == pytest.approx(0.1, abs=0.01)
    assert np.percentile(late, 95) == pytest.approx(0.5, abs=0.05)
    assert max(lag.computed_s) == pytest.approx(0.1)
    assert all(own <= all_of_it for own, all_of_it in zip(lag.computed_s, late, strict=True))


def test_only_the_window_counts() -> None:
    lag = beats({2.0: 0.5})
    assert lag.inside(Window(4.0, 9.0))[0].max() == pytest.approx(0, abs=1e-9)
    late, computed = lag.inside(Window(2.0, 2.6))
    assert late.max() > 0.4 and computed.max() == pytest.approx(0.05)
    assert lag.inside(Window(20.0, 30.0))[0].size == 0

"""Percentiles of all values, none of them grouped, and how sure they are."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np
from numpy.typing import NDArray

SHOWN = (50.0, 90.0, 95.0, 99.0)
"""Percentiles that a distribution holds."""
CONFIDENCE = 0.95
RESAMPLES = 300
LARGEST_RESAMPLED = 50_000
"""With more values the interval is narrower than anybody reads, and takes long to find."""
DRAWN_AT_ONCE = 1 << 20
"""Values, for the sake of memory."""


class Percentile(msgspec.Struct, frozen=True):
    """Seconds, and the interval that holds the true value with CONFIDENCE."""

    value: float
    low: float
    high: float


class Distribution(msgspec.Struct, frozen=True):
    """Seconds; all 0 where nothing was seen."""

    count: int
    mean: float
    p50: Percentile
    p90: Percentile
    p95: Percentile
    p99: Percentile
    largest: float

    def percentile(self, name: str) -> float:
        """Returns what is called p50, p90, p95, p99, mean or largest."""
        value = getattr(self, name)
        return value.value if isinstance(value, Percentile) else float(value)


_NO_VALUE = Percentile(0.0, 0.0, 0.0)
NOTHING = Distribution(0, 0.0, _NO_VALUE, _NO_VALUE, _NO_VALUE, _NO_VALUE, 0.0)


def distribution(values: Iterable[float] | NDArray[np.float64], *, seed: int = 0) -> Distribution:
    """Returns the distribution of some seconds; percentiles are numpy's (linear between values).

    Intervals come from RESAMPLES draws with replacement (percentile bootstrap), up to
    LARGEST_RESAMPLED values; beyond that they are the percentile itself. The same seed gives the
    same intervals. They take values for independent, which gaps within one answer are not quite.
    """
    given = _array(values)
    if not given.size:
        return NOTHING
    given = np.sort(given)
    found = np.percentile(given, SHOWN)
    low = high = found
    if 1 < given.size <= LARGEST_RESAMPLED:
        low, high = _intervals(given, seed)
    p50, p90, p95, p99 = (
        Percentile(*map(float, one)) for one in zip(found, low, high, strict=True)
    )
    return Distribution(given.size, float(given.mean()), p50, p90, p95, p99, float(given[-1]))


def _intervals(given: NDArray[np.float64], seed: int) -> tuple[NDArray[np.float64], ...]:
    random = np.random.default_rng(seed)
    rows = max(1, DRAWN_AT_ONCE // given.size)
    drawn = np.concatenate(
        [
            np.percentile(
                given[random.integers(given.size, size=(min(rows, RESAMPLES - row), given.size))],
                SHOWN,
                axis=1,
            )
            for row in range(0, RESAMPLES, rows)
        ],
        axis=1,
    )
    edge = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(drawn, [edge, 100 - edge], axis=1)
    return low, high


def _array(values: Iterable[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    if isinstance(values, np.ndarray):
        return values
    return np.fromiter(values, dtype=np.float64)

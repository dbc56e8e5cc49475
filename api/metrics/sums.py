"""What several processes count, added up: each says its totals, their growth is added here.

A process that ends takes nothing back of what it has counted, only what it held at that moment.
"""

from __future__ import annotations

import msgspec

from api.metrics.names import METRICS, Metric
from api.metrics.values import Values

_BY_NAME = {metric.name: metric for metric in METRICS.values()}


class Counted(msgspec.Struct, frozen=True, tag=True):
    """Every series of one process: (name, label values, ...)."""

    numbers: list[tuple[str, tuple[str, ...], float]]
    histograms: list[tuple[str, tuple[str, ...], list[int], float]]
    """The last two: observations of each bucket, and their sum."""


def counted(values: Values) -> Counted:
    """Returns what a process has counted so far."""
    return Counted(
        [
            (metric.name, labels, value)
            for metric, series in values.numbers().items()
            for labels, value in series.items()
        ],
        [
            (metric.name, labels, list(histogram.counts), histogram.sum)
            for metric, series in values.histograms().items()
            for labels, histogram in series.items()
        ],
    )


class Share:
    """One process' part of the sums."""

    def __init__(self, sums: Values) -> None:
        self._sums = sums
        self._numbers: dict[tuple[Metric, tuple[str, ...]], float] = {}
        self._histograms: dict[tuple[Metric, tuple[str, ...]], tuple[list[int], float]] = {}

    def take(self, message: Counted) -> None:
        """Adds what has come since the process' message before."""
        for name, labels, value in message.numbers:
            key = (_BY_NAME[name], labels)
            self._sums.number(key[0], *labels).add(value - self._numbers.get(key, 0.0))
            self._numbers[key] = value
        for name, labels, counts, total in message.histograms:
            key = (_BY_NAME[name], labels)
            before, total_before = self._histograms.get(key, ([0] * len(counts), 0.0))
            histogram = self._sums.histogram(key[0], *labels)
            for place, count in enumerate(counts):
                histogram.counts[place] += count - before[place]
            histogram.sum += total - total_before
            self._histograms[key] = (counts, total)

    def leave(self) -> None:
        """The process has ended: its gauges are over, another one counts from 0."""
        for (metric, labels), value in self._numbers.items():
            if metric.kind == "gauge":
                self._sums.number(metric, *labels).add(-value)
        self._numbers.clear()
        self._histograms.clear()

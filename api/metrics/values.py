"""Counters and histograms of one process: bound once, then added to without any look-up.

The client library's own histogram takes one observation at a time; a step's tokens share one gap,
so ours takes a weight. Everything is written by the event loop's thread alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family

from api.metrics.names import BASE_LABELS, Metric

Labels = tuple[str, ...]
Numbers = Mapping[Labels, float]
"""Label values -> the number of a counter's or gauge's series."""


class Number:
    """The value of one counter or gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, amount: float = 1.0) -> None:
        self.value += amount


class Histogram:
    """The buckets of one histogram; a value on an edge belongs below it."""

    __slots__ = ("counts", "edges", "sum")

    def __init__(self, edges: tuple[float, ...]) -> None:
        self.edges = edges
        self.counts = [0] * (len(edges) + 1)
        self.sum = 0.0

    def observe(self, value: float, weight: int = 1) -> None:
        """Counts `weight` observations of the same value."""
        self.counts[bisect_left(self.edges, value)] += weight
        self.sum += value * weight

    @property
    def total(self) -> int:
        """Observations so far."""
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, int]]:
        """Returns (upper edge, observations up to it) of each bucket."""
        total, buckets = 0, []
        for edge, count in zip((*map(_edge, self.edges), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((edge, total))
        return buckets


class Values:
    """Every series that this process counts."""

    def __init__(self) -> None:
        self._numbers: dict[Metric, dict[Labels, Number]] = {}
        self._histograms: dict[Metric, dict[Labels, Histogram]] = {}

    def number(self, metric: Metric, *labels: str) -> Number:
        """Returns the series with these label values, from now on exposed, at 0 if it is new."""
        assert len(labels) == len(metric.labels) and metric.kind != "histogram", metric.name
        return self._numbers.setdefault(metric, {}).setdefault(labels, Number())

    def histogram(self, metric: Metric, *labels: str) -> Histogram:
        """Returns the series with these label values, from now on exposed."""
        assert len(labels) == len(metric.labels) and metric.edges, metric.name
        series = self._histograms.setdefault(metric, {})
        return series.setdefault(labels, Histogram(metric.edges))

    def numbers(self) -> dict[Metric, Numbers]:
        """Returns the values of all counters and gauges."""
        return {
            metric: {labels: number.value for labels, number in series.items()}
            for metric, series in self._numbers.items()
        }

    def histograms(self) -> Mapping[Metric, Mapping[Labels, Histogram]]:
        """Returns all histograms."""
        return self._histograms


def number_family(metric: Metric, series: Numbers, base: Labels, name: str = "") -> Family:
    """Returns a counter or gauge for the exposition. base: values of BASE_LABELS."""
    name = name or metric.name
    labels = [*BASE_LABELS, *metric.labels]
    family: CounterMetricFamily | GaugeMetricFamily
    if metric.kind == "counter":
        family = CounterMetricFamily(name.removesuffix("_total"), metric.help, labels=labels)
    else:
        family = GaugeMetricFamily(name, metric.help, labels=labels)
    for own, value in series.items():
        family.add_metric([*base, *own], value)
    return family


def histogram_family(
    metric: Metric, series: Mapping[Labels, Histogram], base: Labels, name: str = ""
) -> Family:
    """Returns a histogram for the exposition."""
    labels = [*BASE_LABELS, *metric.labels]
    family = HistogramMetricFamily(name or metric.name, metric.help, labels=labels)
    for own, histogram in series.items():
        family.add_metric([*base, *own], histogram.cumulative(), histogram.sum)
    return family


def counted_families(values: Values, base: Labels) -> Iterator[Family]:
    """Yields what this process counts."""
    for metric, numbers in values.numbers().items():
        yield number_family(metric, numbers, base)
    for metric, histograms in values.histograms().items():
        yield histogram_family(metric, histograms, base)


def _edge(edge: float) -> str:
    return str(float(edge))

"""When requests come, whatever became of the ones before: the open loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import Random
from typing import Literal, get_args

Arrivals = Literal["poisson", "gamma", "constant"]
ARRIVALS: tuple[Arrivals, ...] = get_args(Arrivals)


def poisson(rate_per_s: float, random: Random) -> Iterator[float]:
    """Yields seconds since the start, independent of each other: gaps vary by their own mean."""
    return _times(random.expovariate(rate_per_s) for _ in iter(int, 1))


def gamma(rate_per_s: float, cv: float, random: Random) -> Iterator[float]:
    """Yields seconds since the start, in bursts: gaps with a coefficient of variation `cv`.

    cv 1 is Poisson; real traffic was seen at 1 to 13 (the Mooncake and Azure traces).
    """
    shape = 1 / cv**2
    scale = 1 / (rate_per_s * shape)
    return _times(random.gammavariate(shape, scale) for _ in iter(int, 1))


def constant(rate_per_s: float) -> Iterator[float]:
    """Yields seconds since the start, evenly."""
    number = 1
    while True:
        yield number / rate_per_s
        number += 1


def arrivals(kind: Arrivals, rate_per_s: float, cv: float, random: Random) -> Iterator[float]:
    """Yields seconds since the start, without end, `rate_per_s` a second on average."""
    if kind == "poisson":
        return poisson(rate_per_s, random)
    if kind == "gamma":
        return gamma(rate_per_s, cv, random)
    return constant(rate_per_s)


def _times(gaps: Iterable[float]) -> Iterator[float]:
    now = 0.0
    for gap in gaps:
        now += gap
        yield now

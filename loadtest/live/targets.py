"""What a load has to keep: a TOML file, read and checked whole before anything runs.

[first_token]                # seconds, of all workloads; p50_s p90_s p95_s p99_s mean_s max_s
p95_s = 2.0
[inter_token]                # gaps between chunks
[time_per_output_token]      # (end - first token) / (tokens - 1) of each request
[end_to_end]

[workloads.agent.first_token]    # the same of one workload alone
p95_s = 4.0

[goodput]                    # a good request keeps all of these
first_token_s = 2.0
time_per_output_token_s = 0.1
end_to_end_s = 60.0
share = 0.95                 # at least, of the requests that were sent
requests_per_s = 1.0         # at least

[failures]
share = 0.01                 # at most: refused, failed or unfinished, of those that were sent

[cost]                       # at most; USD are GPU-seconds x price
usd_per_million_tokens = 0.5
usd_per_million_prompt_tokens = 0.3
usd_per_million_output_tokens = 2.0
times_expected = 2.0         # of what the cost model says of the same tokens where they stood

[generator]
lag_p99_s = 0.01             # at most: how late the load generator itself was
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from loadtest.live.profiles import WORKLOADS

LATENCIES = ("first_token", "inter_token", "time_per_output_token", "end_to_end")
PERCENTILES = {
    "p50_s": "p50",
    "p90_s": "p90",
    "p95_s": "p95",
    "p99_s": "p99",
    "mean_s": "mean",
    "max_s": "largest",
}
"""Key -> what a distribution calls it."""

Table = TypeVar("Table", bound=msgspec.Struct)


class TargetsError(ValueError):
    """A targets file that cannot be used; the message names file, key and what is allowed."""


class Goodput(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a request good, and how many have to be. None: not asked for."""

    first_token_s: float | None = None
    time_per_output_token_s: float | None = None
    end_to_end_s: float | None = None
    share: float | None = None
    requests_per_s: float | None = None

    @property
    def limits(self) -> dict[str, float]:
        """What a good request keeps, seconds."""
        names = ("first_token_s", "time_per_output_token_s", "end_to_end_s")
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None}


class Failures(msgspec.Struct, frozen=True):
    share: float | None = None


class CostLimits(msgspec.Struct, frozen=True, kw_only=True):
    usd_per_million_tokens: float | None = None
    usd_per_million_prompt_tokens: float | None = None
    usd_per_million_output_tokens: float | None = None
    times_expected: float | None = None


class Generator(msgspec.Struct, frozen=True):
    lag_p99_s: float | None = None


class Targets(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a file asks for."""

    latency: dict[str, dict[str, dict[str, float]]] = {}
    """Workload ("" is all of them) -> name of LATENCIES -> key of PERCENTILES -> seconds."""
    goodput: Goodput = Goodput()
    failures: Failures = Failures()
    cost: CostLimits = CostLimits()
    generator: Generator = Generator()


NONE = Targets()


def load_targets(path: Path) -> Targets:
    """Returns the targets in a file.

    Raises TargetsError for a file that cannot be read, is not TOML, asks for nothing, has a key
    that is none, or a value outside its range.
    """
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise TargetsError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TargetsError(f"{path}: not text in UTF-8") from None
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TargetsError(f"{path}: {error}") from None
    try:
        return _targets(given)
    except TargetsError as error:
        raise TargetsError(f"{path}: {error}") from None


def _targets(given: dict[str, Any]) -> Targets:
    tables = (*LATENCIES, "workloads", "goodput", "failures", "cost", "generator")
    _known("", given, tables)
    latency = {"": _latencies("", given)}
    for workload, inside in _table("workloads", given.get("workloads", {})).items():
        where = f"workloads.{workload}"
        if workload not in WORKLOADS:
            raise TargetsError(f"{where} is no workload; allowed: {', '.join(WORKLOADS)}")
        _known(where, _table(where, inside), LATENCIES)
        latency[workload] = _latencies(f"{where}.", inside)
    targets = Targets(
        latency={name: tables for name, tables in latency.items() if tables},
        goodput=_struct(Goodput, "goodput", given, shares=("share",)),
        failures=_struct(Failures, "failures", given, shares=("share",)),
        cost=_struct(CostLimits, "cost", given),
        generator=_struct(Generator, "generator", given),
    )
    if targets.goodput.share is not None and not targets.goodput.limits:
        raise TargetsError(
            "goodput.share says how many requests must be good, but nothing says what is; allowed "
            "beside it: first_token_s, time_per_output_token_s, end_to_end_s"
        )
    if targets == NONE:
        raise TargetsError(f"no target in it; allowed tables: {', '.join(tables)}")
    return targets


def _latencies(where: str, given: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    found = {}
    for name in LATENCIES:
        if name in given:
            table = _table(where + name, given[name])
            _known(where + name, table, tuple(PERCENTILES))
            found[name] = {
                key: _number(f"{where}{name}.{key}", value, math.inf)
                for key, value in table.items()
            }
    return {name: table for name, table in found.items() if table}


def _struct(
    kind: type[Table], name: str, given: Mapping[str, Any], *, shares: tuple[str, ...] = ()
) -> Table:
    table = _table(name, given.get(name, {}))
    _known(name, table, kind.__struct_fields__)
    values = {
        key: _number(f"{name}.{key}", value, 1.0 if key in shares else math.inf)
        for key, value in table.items()
    }
    return kind(**values)


def _table(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TargetsError(f"{where} is {value!r}; allowed: a table, [{where}]")
    return value


def _known(where: str, table: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    for key in table:
        if key not in allowed:
            name = f"{where}.{key}" if where else key
            raise TargetsError(f"{name} is no target; allowed: {', '.join(allowed)}")


def _number(where: str, value: Any, most: float) -> float:
    """A share may be 0; everything else is above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TargetsError(f"{where} is {value!r}; allowed: a number")
    share = most == 1.0
    if not (0 <= value <= 1 if share else 0 < value < math.inf):
        allowed = "0 to 1" if share else "above 0, finite"
        raise TargetsError(f"{where} is {value}; allowed: {allowed}")
    return float(value)

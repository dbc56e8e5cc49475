"""Figures held against targets: what was kept, what was missed, what nobody knows."""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

import msgspec

from loadtest.live.figures import ALL, Figures, WorkloadFigures
from loadtest.live.targets import PERCENTILES, Targets

Unit = Literal["s", "share", "USD", "x", "/s"]


class ExitStatus(IntEnum):
    """Of `winnow load`."""

    KEPT = 0
    FAILED = 1
    """It could not begin, or failed itself; the server is not to blame."""
    MISSED = 2
    NO_DATA = 3


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One target and what was measured; None: nothing was."""

    name: str
    workload: str = ALL
    measured: float | None
    limit: float
    unit: Unit
    at_least: bool = False

    @property
    def kept(self) -> bool | None:
        """Whether the target was kept; None when nothing was measured."""
        if self.measured is None:
            return None
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


class Verdict(msgspec.Struct, frozen=True):
    """All targets of a run."""

    checks: tuple[Check, ...]
    status: ExitStatus

    @property
    def missed(self) -> list[Check]:
        return [check for check in self.checks if check.kept is False]

    @property
    def unknown(self) -> list[Check]:
        return [check for check in self.checks if check.kept is None]


def verdict(figures: Figures, targets: Targets, *, failed: bool = False) -> Verdict:
    """Returns every check, and the status: FAILED when the load generator itself has, else NO_DATA
    when no answered request was sent in the window, else MISSED when a target was missed, else
    NO_DATA when one has nothing to be held against, else KEPT."""
    checks = tuple(_checks(figures, targets))
    kept = [check.kept for check in checks]
    if failed:
        status = ExitStatus.FAILED
    elif not figures.all.answered:
        status = ExitStatus.NO_DATA
    elif False in kept:
        status = ExitStatus.MISSED
    else:
        status = ExitStatus.NO_DATA if None in kept else ExitStatus.KEPT
    return Verdict(checks, status)


def _checks(figures: Figures, targets: Targets) -> list[Check]:
    checks = []
    for workload, tables in targets.latency.items():
        of_workload = figures.workloads.get(workload)
        for name, limits in tables.items():
            for key, limit in limits.items():
                measured = _latency(of_workload, name, PERCENTILES[key])
                checks.append(
                    Check(
                        name=f"{name}.{key}",
                        workload=workload,
                        measured=measured,
                        limit=limit,
                        unit="s",
                    )
                )
    whole, goodput = figures.all, targets.goodput
    sent = whole.sent
    if goodput.share is not None:
        share = whole.good / sent if sent else None
        checks.append(
            Check(
                name="goodput.share",
                measured=share,
                limit=goodput.share,
                unit="share",
                at_least=True,
            )
        )
    if goodput.requests_per_s is not None:
        checks.append(
            Check(
                name="goodput.requests_per_s",
                measured=figures.good_requests_per_s if sent else None,
                limit=goodput.requests_per_s,
                unit="/s",
                at_least=True,
            )
        )
    if targets.failures.share is not None:
        share = whole.failed / sent if sent else None
        checks.append(
            Check(name="failures.share", measured=share, limit=targets.failures.share, unit="share")
        )
    checks += _cost_checks(figures, targets)
    if targets.generator.lag_p99_s is not None:
        lag = figures.lag
        checks.append(
            Check(
                name="generator.lag_p99_s",
                measured=lag.p99.value if lag.count else None,
                limit=targets.generator.lag_p99_s,
                unit="s",
            )
        )
    return checks


def _cost_checks(figures: Figures, targets: Targets) -> list[Check]:
    cost, limits = figures.cost, targets.cost
    phases = {one.phase: one for one in cost.phases} if cost else {}
    prefill, decode = phases.get("prefill"), phases.get("decode")
    measured = {
        "usd_per_million_tokens": cost.usd_per_million_tokens if cost else None,
        "usd_per_million_prompt_tokens": prefill.usd_per_million_tokens if prefill else None,
        "usd_per_million_output_tokens": decode.usd_per_million_tokens if decode else None,
        "times_expected": cost.times_expected if cost else None,
    }
    return [
        Check(
            name=f"cost.{name}",
            measured=value,
            limit=getattr(limits, name),
            unit="x" if name == "times_expected" else "USD",
        )
        for name, value in measured.items()
        if getattr(limits, name) is not None
    ]


def _latency(figures: WorkloadFigures | None, name: str, percentile: str) -> float | None:
    if figures is None:
        return None
    found = getattr(figures, name)
    return found.percentile(percentile) if found.count else None

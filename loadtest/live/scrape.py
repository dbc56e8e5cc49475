"""Winnow's own counters, read every now and then: GPU-seconds, tokens, expected cost by phase."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from cost_model.model import PHASES

GPU_SECONDS = "winnow_gpu_seconds_total"
EXPECTED_USD = "winnow_expected_cost_usd_total"
TOKENS = "winnow_tokens_total"
CONTEXT_TOKENS = "winnow_context_tokens_total"
PRICE = "winnow_gpu_price_usd_per_hour"
COST_MODEL = "winnow_cost_model_info"
WANTED = (GPU_SECONDS, EXPECTED_USD, TOKENS, CONTEXT_TOKENS, PRICE, COST_MODEL)


class PhaseCounts(msgspec.Struct, frozen=True):
    """Of prefill or decode, since the server started."""

    gpu_seconds: float = 0.0
    computed_tokens: float = 0.0
    cached_tokens: float = 0.0
    context_tokens: float = 0.0
    """Sum over the computed tokens of what each could see."""
    expected_usd: float = 0.0


class Counts(msgspec.Struct, frozen=True):
    """All counters at one moment."""

    at_s: float
    phases: dict[str, PhaseCounts]
    usd_per_hour: float
    cost_model: str
    """Preset and machine."""


class Counted(msgspec.Struct, frozen=True):
    """What was counted in some time."""

    seconds: float
    phases: dict[str, PhaseCounts]
    usd_per_hour: float
    cost_model: str


def read_counts(text: bytes, at_s: float) -> Counts | None:
    """Returns the counters in a text of /metrics; None when it has none of Winnow's cost series.

    Several engines behind one address are added up. Only the wanted lines are parsed: a load
    generator has no time for the others.
    """
    lines = [line for line in text.splitlines() if line.startswith(b"winnow_")]
    wanted = [line for line in lines if line.startswith(tuple(map(str.encode, WANTED)))]
    sums: dict[tuple[str, str], float] = {}
    price, cost_model = 0.0, ""
    for family in text_string_to_metric_families(b"\n".join(wanted).decode() + "\n"):
        for name, labels, value, *_ in family.samples:
            if name == PRICE:
                price = value
            elif name == COST_MODEL:
                cost_model = f"{labels.get('preset', '')}, {labels.get('machine', '')}"
            else:
                kind = name + ("_cached" if labels.get("source") == "cached" else "")
                key = (kind, labels.get("phase", ""))
                sums[key] = sums.get(key, 0.0) + value
    if not any(name == GPU_SECONDS for name, _ in sums):
        return None
    phases: dict[str, PhaseCounts] = {
        phase: PhaseCounts(
            gpu_seconds=sums.get((GPU_SECONDS, phase), 0.0),
            computed_tokens=sums.get((TOKENS, phase), 0.0),
            cached_tokens=sums.get((TOKENS + "_cached", phase), 0.0),
            context_tokens=sums.get((CONTEXT_TOKENS, phase), 0.0),
            expected_usd=sums.get((EXPECTED_USD, phase), 0.0),
        )
        for phase in PHASES
    }
    return Counts(at_s, phases, price, cost_model)


def between(scrapes: Sequence[Counts], begin_s: float, end_s: float) -> Counted | None:
    """Returns what was counted from `begin_s` to `end_s`; None when no two scrapes lie around any
    of it, or a counter went back: the server was started anew, or several answer by turns.

    Between two scrapes a counter is taken to have grown evenly.
    """
    if len(scrapes) < 2:
        return None
    begin_s, end_s = max(begin_s, scrapes[0].at_s), min(end_s, scrapes[-1].at_s)
    if end_s <= begin_s:
        return None
    first, last = _at(scrapes, begin_s), _at(scrapes, end_s)
    phases = {
        phase: PhaseCounts(
            *(
                after - before
                for after, before in zip(_values(last[phase]), _values(one), strict=True)
            )
        )
        for phase, one in first.items()
    }
    if any(_went_back(*pair) for pair in pairwise(scrapes)):
        return None
    latest = scrapes[-1]
    return Counted(end_s - begin_s, phases, latest.usd_per_hour, latest.cost_model)


def _at(scrapes: Sequence[Counts], at_s: float) -> dict[str, PhaseCounts]:
    after = bisect.bisect_left(scrapes, at_s, key=lambda one: one.at_s)
    if after == 0:
        return scrapes[0].phases
    one, other = scrapes[after - 1], scrapes[after]
    share = (at_s - one.at_s) / (other.at_s - one.at_s)
    return {
        phase: PhaseCounts(
            *(
                low + share * (high - low)
                for low, high in zip(
                    _values(one.phases[phase]), _values(other.phases[phase]), strict=True
                )
            )
        )
        for phase in one.phases
    }


def _values(one: PhaseCounts) -> Iterable[float]:
    return msgspec.structs.astuple(one)


def _went_back(before: Counts, after: Counts) -> bool:
    return any(
        later < earlier
        for phase, counts in before.phases.items()
        for earlier, later in zip(_values(counts), _values(after.phases[phase]), strict=True)
    )

"""What a simulation's figures are, from what it saw.

hit rate           prompt tokens found in the cache, of all prompt tokens
recomputed         tokens computed again in steps that served a request, the first time not
                   counted; pre-warming serves no request and is counted beside it
inter-token        every gap between two tokens of an answer
goodput            output tokens per second of the requests that kept both targets: the first
                   token in time, and the answer's mean gap within GAP_TOLERANCE of its target
utilisation        seconds that the computed tokens add to their steps, of the room that steps of
                   the inter-token target's length have for them
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from cost_model.costs import dollars
from cost_model.predictor import StepCoefficients, StepSums
from loadtest.door import Wait
from loadtest.replica import Replica
from loadtest.simulator import Flight, Observed

GAP_TOLERANCE = 1.2
"""Steps are planned up to the target, by a prediction; what exceeds it by less still keeps it."""


class Percentiles(msgspec.Struct, frozen=True):
    """Seconds; all 0 where nothing was seen."""

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    largest: float = 0.0


class Dollars(msgspec.Struct, frozen=True):
    """Of the GPUs for the time that went by, idle or not, and what the tokens cost at full load."""

    usd: float
    per_million_output_tokens: float
    """All dollars on the output tokens."""
    per_million_tokens: float
    """On prompt and output tokens alike."""
    per_thousand_requests: float
    full_load_per_million_computed_prompt_tokens: float
    full_load_per_million_output_tokens: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of the requests that arrived from `measured_from_s` on."""

    model: str
    gpu: str
    gpus: int
    pages: int
    inter_token_target_s: float
    first_token_target_s: float
    measured_from_s: float
    seconds: float
    """Virtual, from there to the last end."""
    steps: int
    requests: int
    completed: int
    refused: dict[str, int]
    """By code."""
    prompt_tokens: int
    output_tokens: int
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    goodput_tokens_per_s: float
    in_time: float
    """Share of the completed requests that kept both targets."""
    first_token_s: dict[str, Percentiles]
    """By kind of request, and of all."""
    inter_token_s: Percentiles
    hit_rate: float
    computed_prompt_tokens: int
    recomputed_tokens: int
    pre_warmed_tokens: int
    preemptions: int
    evictions: dict[str, int]
    """Pages, by the class they had."""
    busy: float
    """Share of the time in which a step ran."""
    utilisation: float
    longest_refusal_s: float
    """From a request's arrival to its refusal."""
    retry: Percentiles
    """Of |told - real| / real, over refused requests that were told when to come back."""
    dollars: Dollars


def report(
    replica: Replica,
    observed: Observed,
    *,
    waits: Sequence[Wait] = (),
    first_token_target_s: float,
    measured_from_s: float = 0.0,
) -> Report:
    """Returns the figures of a run."""
    flights = [one for one in observed.flights if one.arrival_s >= measured_from_s]
    done = [one for one in flights if one.end_s >= 0]
    target_s = replica.settings.inter_token_target_s
    good = [one for one in done if _is_good(one, first_token_target_s, target_s)]
    seconds = max(observed.end_s - measured_from_s, 1e-9)
    prompt_tokens = sum(one.request.prompt_tokens for one in done)
    output_tokens = sum(one.generated_tokens for one in done)
    cached_tokens = sum(one.cached_tokens for one in done)
    refused: dict[str, int] = {}
    for one in flights:
        if one.refusal is not None:
            refused[one.refusal.code] = refused.get(one.refusal.code, 0) + 1
    prefill_s, decode_s = work_s(replica.full_load, replica.shape.index_topk, done)
    return Report(
        model=replica.shape.name,
        gpu=replica.machine.name,
        gpus=replica.gpus,
        pages=replica.config.total_pages,
        inter_token_target_s=target_s,
        first_token_target_s=first_token_target_s,
        measured_from_s=measured_from_s,
        seconds=seconds,
        steps=observed.steps,
        requests=len(flights),
        completed=len(done),
        refused=refused,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        prompt_tokens_per_s=prompt_tokens / seconds,
        output_tokens_per_s=output_tokens / seconds,
        goodput_tokens_per_s=sum(one.generated_tokens for one in good) / seconds,
        in_time=len(good) / max(1, len(done)),
        first_token_s=_first_tokens(done),
        inter_token_s=percentiles(observed.gaps_s),
        hit_rate=cached_tokens / max(1, prompt_tokens),
        computed_prompt_tokens=prompt_tokens - cached_tokens,
        recomputed_tokens=sum(one.recomputed_tokens for one in done),
        pre_warmed_tokens=observed.pre_warmed_tokens,
        preemptions=observed.preemptions,
        evictions=observed.evictions,
        busy=observed.busy_s / seconds,
        utilisation=sum(work_s(replica.coefficients, replica.shape.index_topk, done))
        / (seconds * replica.room),
        longest_refusal_s=max(
            (one.refused_s - one.arrival_s for one in flights if one.refusal), default=0.0
        ),
        retry=percentiles(abs(one.told_s - one.real_s) / one.real_s for one in waits),
        dollars=_dollars(
            replica,
            seconds,
            len(done),
            (prompt_tokens, prompt_tokens - cached_tokens, output_tokens),
            (prefill_s, decode_s),
        ),
    )


def percentiles(values: Iterable[float]) -> Percentiles:
    """Returns the percentiles of some seconds."""
    given = np.fromiter(values, dtype=np.float64)
    if not given.size:
        return Percentiles()
    p50, p90, p95, p99 = np.percentile(given, [50, 90, 95, 99]).tolist()
    mean, largest = float(given.mean()), float(given.max())
    return Percentiles(given.size, mean, p50, p90, p95, p99, largest)


def request_s(
    one: StepCoefficients, top_k: int, cached: int, prompt: int, output: int
) -> tuple[float, float]:
    """Returns the seconds, of prefill and of decode, that a request's tokens add to their steps."""
    asked = StepSums.prefill_chunk(cached, prompt - cached, top_k)
    said = StepSums.prefill_chunk(prompt, output, top_k)
    prefill_s = (
        asked.prefill_tokens * one.prefill_token_s
        + asked.prefill_context_tokens * one.prefill_context_token_s
        + asked.prefill_selected_tokens * one.prefill_selected_token_s
    )
    decode_s = (
        said.prefill_tokens * one.decode_token_s
        + said.prefill_context_tokens * one.decode_context_token_s
        + said.prefill_selected_tokens * one.decode_selected_token_s
    )
    return prefill_s, decode_s


def work_s(one: StepCoefficients, top_k: int, flights: Iterable[Flight]) -> tuple[float, float]:
    """Returns the same of all these requests, as far as they were computed."""
    parts = [
        request_s(
            one, top_k, flight.cached_tokens, flight.request.prompt_tokens, flight.generated_tokens
        )
        for flight in flights
    ]
    return sum(prefill for prefill, _ in parts), sum(decode for _, decode in parts)


def _is_good(flight: Flight, first_token_target_s: float, inter_token_target_s: float) -> bool:
    gaps = flight.generated_tokens - 1
    mean_s = (flight.end_s - flight.first_s) / gaps if gaps else 0.0
    first_s = flight.first_s - flight.arrival_s
    return first_s <= first_token_target_s and mean_s <= GAP_TOLERANCE * inter_token_target_s


def _first_tokens(flights: Iterable[Flight]) -> dict[str, Percentiles]:
    by_kind: dict[str, list[float]] = {"all": []}
    for one in flights:
        seconds = one.first_s - one.arrival_s
        by_kind["all"].append(seconds)
        by_kind.setdefault(one.request.kind, []).append(seconds)
    found = {kind: percentiles(seconds) for kind, seconds in by_kind.items()}
    return found if len(found) > 2 else {"all": found["all"]}


def _dollars(
    replica: Replica,
    seconds: float,
    requests: int,
    tokens: tuple[int, int, int],
    full_load_s: tuple[float, float],
) -> Dollars:
    prompt_tokens, computed_tokens, output_tokens = tokens
    price = replica.usd_per_hour
    usd = dollars(seconds * replica.gpus, price)
    prefill_usd, decode_usd = (dollars(one, price) for one in full_load_s)
    return Dollars(
        usd=usd,
        per_million_output_tokens=usd / max(1, output_tokens) * 1e6,
        per_million_tokens=usd / max(1, prompt_tokens + output_tokens) * 1e6,
        per_thousand_requests=usd / max(1, requests) * 1e3,
        full_load_per_million_computed_prompt_tokens=prefill_usd / max(1, computed_tokens) * 1e6,
        full_load_per_million_output_tokens=decode_usd / max(1, output_tokens) * 1e6,
    )

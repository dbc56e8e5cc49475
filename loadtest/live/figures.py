"""What a load test's figures are, from the samples of its requests. Times are seconds.

first token              to the first chunk that says something, reasoning included
inter-token              gaps between chunks; one chunk may hold several tokens
time per output token    (last chunk - first chunk) / (tokens - 1) of each request, by the tokens
                         that the server counts
end to end               to the end of the stream
goodput                  requests that kept every limit, of those that were SENT in the window:
                         a refused, failed or unfinished one is not good

Everything is of the requests sent in the window; rates are of what came in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadtest.live.cost import Cost
from loadtest.live.distribution import Distribution, distribution
from loadtest.live.samples import Sample
from loadtest.live.window import Window

ALL = ""
"""The name of all workloads together."""


class WorkloadFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Of one workload, or of all."""

    sent: int
    answered: int
    errors: dict[str, int]
    """Code of a refusal, a failure or `unfinished` -> requests."""
    first_token: Distribution
    inter_token: Distribution
    time_per_output_token: Distribution
    end_to_end: Distribution
    good: int
    prompt_tokens: int
    """Of the answered requests."""
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    asked_calls: int
    calls: int
    """Answers with a tool call, of those that were asked for one."""

    @property
    def failed(self) -> int:
        return self.sent - self.answered


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Of a whole run."""

    window: Window
    run_s: float
    """From the first request to the last end."""
    requests_in_all: int
    """Outside the window, too."""
    workloads: dict[str, WorkloadFigures]
    """By name; ALL is all of them."""
    limits: dict[str, float]
    """What goodput asks of a request."""
    requests_per_s: float
    """Ended well in the window."""
    good_requests_per_s: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    good_output_tokens_per_s: float
    lag: Distribution
    """How late the load generator's own loop was in the window."""
    computing: Distribution
    """The part of it in which the load generator computed; the rest it waited for a core."""
    sent_late: Distribution
    """How late requests were sent; open loop only."""
    uncounted: int
    """Answers whose tokens the server did not count: each chunk was taken for one."""
    cost: Cost | None

    @property
    def all(self) -> WorkloadFigures:
        return self.workloads[ALL]


def figures(
    samples: Sequence[Sample],
    window: Window,
    *,
    run_s: float,
    limits: Mapping[str, float],
    lag: tuple[NDArray[np.float64], NDArray[np.float64]],
    cost: Cost | None,
    open_loop: bool,
) -> Figures:
    """Returns the figures of a run. lag: as `Lag.inside` has it."""
    inside = [one for one in samples if window.holds(one.sent_s)]
    names = sorted({one.workload for one in inside})
    by_name = {name: [one for one in inside if one.workload == name] for name in names}
    good = {id(one) for one in inside if is_good(one, limits)}
    seconds = max(window.seconds, 1e-9)
    ended = [one for one in samples if one.outcome == "answered" and window.holds(one.end_s)]
    return Figures(
        window=window,
        run_s=run_s,
        requests_in_all=len(samples),
        workloads={
            name: _workload(of_name, good) for name, of_name in {ALL: inside, **by_name}.items()
        },
        limits=dict(limits),
        requests_per_s=len(ended) / seconds,
        good_requests_per_s=sum(is_good(one, limits) for one in ended) / seconds,
        prompt_tokens_per_s=sum(one.prompt_tokens for one in samples if window.holds(one.first_s))
        / seconds,
        output_tokens_per_s=output_tokens(samples, window) / seconds,
        good_output_tokens_per_s=output_tokens(
            [one for one in samples if is_good(one, limits)], window
        )
        / seconds,
        lag=distribution(lag[0]),
        computing=distribution(lag[1]),
        sent_late=distribution(one.lag_s for one in inside if open_loop),
        uncounted=sum(one.outcome == "answered" and not one.counted for one in inside),
        cost=cost,
    )


def is_good(sample: Sample, limits: Mapping[str, float]) -> bool:
    """Whether a request was answered within every limit; one token has no time per token."""
    if sample.outcome != "answered":
        return False
    measured = {
        "first_token_s": sample.first_token_s if sample.first_s >= 0 else sample.end_to_end_s,
        "time_per_output_token_s": sample.time_per_output_token_s or 0.0,
        "end_to_end_s": sample.end_to_end_s,
    }
    return all(measured[name] <= limit for name, limit in limits.items())


def gaps_s(samples: Iterable[Sample]) -> NDArray[np.float64]:
    """Returns every gap between two chunks of an answer."""
    parts = [np.diff(np.frombuffer(one.chunks_s)) for one in samples if len(one.chunks_s) > 1]
    return np.concatenate(parts) if parts else np.empty(0)


def output_tokens(samples: Iterable[Sample], window: Window) -> float:
    """Returns the output tokens that came in the window, those of requests on its edges in part.

    An answer's chunks are taken to hold equally many of its tokens.
    """
    tokens = 0.0
    for one in samples:
        if one.chunks_s:
            times = np.frombuffer(one.chunks_s)
            begin, end = np.searchsorted(times, (window.begin_s, window.end_s))
            tokens += one.output_tokens * float(end - begin) / len(times)
    return tokens


def _workload(samples: Sequence[Sample], good: set[int]) -> WorkloadFigures:
    answered = [one for one in samples if one.outcome == "answered"]
    errors: dict[str, int] = {}
    for one in samples:
        if one.outcome != "answered":
            code = one.error or one.outcome
            errors[code] = errors.get(code, 0) + 1
    per_token = [one.time_per_output_token_s for one in answered]
    return WorkloadFigures(
        sent=len(samples),
        answered=len(answered),
        errors=errors,
        first_token=distribution(one.first_token_s for one in answered if one.first_s >= 0),
        inter_token=distribution(gaps_s(answered)),
        time_per_output_token=distribution(one for one in per_token if one is not None),
        end_to_end=distribution(one.end_to_end_s for one in answered),
        good=sum(id(one) in good for one in samples),
        prompt_tokens=sum(one.prompt_tokens for one in answered),
        cached_tokens=sum(one.cached_tokens for one in answered),
        output_tokens=sum(one.output_tokens for one in answered),
        reasoning_tokens=sum(one.reasoning_tokens for one in answered),
        asked_calls=sum(one.asked_call for one in answered),
        calls=sum(one.called for one in answered),
    )

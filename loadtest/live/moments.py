"""What a run looks like while it runs: one line of figures for each second."""

from __future__ import annotations

from collections import deque

import msgspec
import numpy as np

from cost_model.costs import dollars
from loadtest.live.lag import Lag
from loadtest.live.samples import Sample
from loadtest.live.scrape import Counts, between
from loadtest.live.session import Run

LOOK_BACK_S = 10.0
LONGEST_HISTORY = 3600


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """Of the LOOK_BACK_S before; None where nothing was seen in them."""

    at_s: float
    in_flight: int
    first_token_p50_s: float | None
    first_token_p95_s: float | None
    time_per_output_token_p50_s: float | None
    requests_per_s: float
    failed_per_s: float
    output_tokens_per_s: float
    usd_per_million_tokens: float | None
    lag_s: float


class Live:
    """Adds requests up as they end."""

    def __init__(self, lag: Lag, scrapes: list[Counts], usd_per_hour: float | None) -> None:
        """scrapes: grows while the run runs. usd_per_hour: None is the server's own price."""
        self.moments: deque[Moment] = deque(maxlen=LONGEST_HISTORY)
        self._recent: deque[Sample] = deque()
        self._lag, self._scrapes, self._usd_per_hour = lag, scrapes, usd_per_hour
        # Numpy's first percentile takes tens of milliseconds, which no stream should wait for.
        _percentile([0.0], 50)

    def ended(self, sample: Sample) -> None:
        """Takes a request that is over."""
        if sample.end_s >= 0:
            self._recent.append(sample)

    def tick(self, run: Run) -> Moment:
        """Looks at the run; call it once a second."""
        now_s = run.now_s
        begin_s = max(0.0, now_s - LOOK_BACK_S)
        while self._recent and self._recent[0].end_s < begin_s:
            self._recent.popleft()
        answered = [one for one in self._recent if one.outcome == "answered"]
        seconds = max(now_s - begin_s, 1e-9)
        first = [one.first_token_s for one in answered if one.first_s >= 0]
        per_token = [one.time_per_output_token_s for one in answered]
        beats = int(LOOK_BACK_S * 100)
        moment = Moment(
            at_s=now_s,
            in_flight=run.in_flight,
            first_token_p50_s=_percentile(first, 50),
            first_token_p95_s=_percentile(first, 95),
            time_per_output_token_p50_s=_percentile([one for one in per_token if one], 50),
            requests_per_s=len(answered) / seconds,
            failed_per_s=(len(self._recent) - len(answered)) / seconds,
            output_tokens_per_s=sum(one.output_tokens for one in answered) / seconds,
            usd_per_million_tokens=self._cost(begin_s, now_s),
            lag_s=max(self._lag.late_s[-beats:], default=0.0),
        )
        self.moments.append(moment)
        return moment

    def _cost(self, begin_s: float, now_s: float) -> float | None:
        counted = between(self._scrapes, begin_s, now_s)
        if counted is None:
            return None
        tokens = sum(one.computed_tokens for one in counted.phases.values())
        seconds = sum(one.gpu_seconds for one in counted.phases.values())
        price = counted.usd_per_hour if self._usd_per_hour is None else self._usd_per_hour
        return dollars(seconds, price) / tokens * 1e6 if tokens else None


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One workload so far, exactly; milliseconds, as locust's own tables have them."""

    workload: str
    sent: int
    answered: int
    first_token_p50: float
    first_token_p99: float
    per_output_token_p50: float
    per_output_token_p99: float
    end_to_end_p99: float
    output_tokens: int


def rows(samples: list[Sample]) -> list[Row]:
    """Returns one row per workload."""
    found = []
    for workload in sorted({one.workload for one in samples}):
        mine = [one for one in samples if one.workload == workload]
        done = [one for one in mine if one.outcome == "answered"]
        first = [one.first_token_s for one in done if one.first_s >= 0]
        times = [one.time_per_output_token_s for one in done]
        per_token = [one for one in times if one is not None]
        found.append(
            Row(
                workload=workload,
                sent=len(mine),
                answered=len(done),
                first_token_p50=_milliseconds(first, 50),
                first_token_p99=_milliseconds(first, 99),
                per_output_token_p50=_milliseconds(per_token, 50),
                per_output_token_p99=_milliseconds(per_token, 99),
                end_to_end_p99=_milliseconds([one.end_to_end_s for one in done], 99),
                output_tokens=sum(one.output_tokens for one in done),
            )
        )
    return found


def _percentile(values: list[float], q: float) -> float | None:
    return float(np.percentile(values, q)) if values else None


def _milliseconds(values: list[float], q: float) -> float:
    """A percentile without its interval: that would hold every stream up while it is found."""
    return 1000 * (_percentile(values, q) or 0.0)

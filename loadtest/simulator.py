"""A replica on a virtual clock: the scheduler that serves, the seconds of the cost model.

    observed = Simulator(replica, source).run()

Events are arrivals and the ends of steps. A request that arrives passes the door at once and
reaches the scheduler when the running step ends, as it does in the engine. The clock only moves by
what steps take and by waiting for the next arrival, so a simulation is a function of its inputs:
the same trace, seed and settings make the same decisions.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from itertools import count
from math import inf
from pathlib import Path

from cost_model.predictor import StepPredictor
from loadtest.computed import Computed
from loadtest.door import Door
from loadtest.recording import Recorder
from loadtest.replica import Replica, StepTimes
from loadtest.sources import Request, Source, TurnEnd
from loadtest.tokens import Run, token_ids
from scheduler.admission import Backlog, Limits, Sizes
from scheduler.drain import DrainRate
from scheduler.outcome import Choice, Refusal
from scheduler.plan import StepPlan, StepResult
from scheduler.request import Sampling
from scheduler.scheduler import Scheduler


class Flight:
    """A request on its way, and in the end what became of it."""

    __slots__ = (
        "arrival_s",
        "cached_tokens",
        "end_s",
        "first_s",
        "generated_tokens",
        "last_s",
        "recomputed_tokens",
        "refusal",
        "refused_s",
        "request",
        "starts",
        "text",
    )

    def __init__(self, request: Request, arrival_s: float) -> None:
        self.request, self.arrival_s = request, arrival_s
        self.text: tuple[Run, ...] = (*request.prompt, *request.output)
        self.first_s = self.end_s = -1.0
        """-1: not yet."""
        self.last_s = 0.0
        self.generated_tokens = 0
        self.cached_tokens = 0
        self.recomputed_tokens = 0
        self.starts = 0
        """Times it got a slot; after the first it had been preempted."""
        self.refusal: Refusal | None = None
        self.refused_s = -1.0
        """When the client heard of it."""

    @property
    def known_tokens(self) -> int:
        """Prompt and generated tokens."""
        return self.request.prompt_tokens + self.generated_tokens


class Observed:
    """What a simulation saw."""

    def __init__(self) -> None:
        self.flights: list[Flight] = []
        """In the order of arrival, refused ones too."""
        self.gaps_s = array("d")
        """Between two tokens of an answer, all answers."""
        self.steps = 0
        """Of the measured time, as are their seconds."""
        self.busy_s = 0.0
        self.end_s = 0.0
        self.pre_warmed_tokens = 0
        """Of the measured time."""
        self.preemptions = 0
        self.evictions: dict[str, int] = {}
        self.pages: list[tuple[float, int, int]] = []
        """(time, live, idle), sampled with the snapshots."""
        self.working_set_tokens: list[tuple[float, int]] = []
        """(time, tokens), sampled with them too."""
        self.asked_again_tokens: list[tuple[float, int]] = []
        self.awaited_pages: list[tuple[float, int]] = []


class Simulator:
    """One run. `record` is a file for every decision; `on_end` hears of every ended request."""

    def __init__(
        self,
        replica: Replica,
        source: Source,
        *,
        deadline_s: float | None = None,
        measure_from_s: float = 0.0,
        until_s: float = inf,
        record: Path | None = None,
        on_end: Callable[[], object] | None = None,
    ) -> None:
        config = replica.config
        self.replica, self.source, self.deadline_s = replica, source, deadline_s
        predictor = StepPredictor(replica.coefficients, replica.shape.index_topk)
        self.scheduler = Scheduler(config, predictor)
        self._decisions: Scheduler | Recorder = self.scheduler
        self._recorder: Recorder | None = None
        if record is not None:
            self._recorder = self._decisions = Recorder(self.scheduler, predictor, record)
        self._measure_from_s, self._until_s = measure_from_s, until_s
        self.door = Door(
            Limits(
                max_model_len=config.max_model_len,
                max_queued_requests=config.max_queued_requests,
                max_queued_tokens=replica.max_queued_tokens,
            )
        )
        self.observed = Observed()
        self._on_end = on_end or (lambda: None)
        self._times = StepTimes(replica)
        self._drain = DrainRate()
        self._computed = Computed()
        self._warm_before = 0
        self._events: list[tuple[float, int, Request]] = []
        self._serial = count()
        self._flights: dict[str, Flight] = {}
        self._slots: dict[int, Flight | None] = {}
        """Slot -> the request in it; None: it is pre-warmed."""
        self._tokens = [0] * config.max_num_seqs
        """Slot -> the token that its sequence says, over and over."""

    def run(self) -> Observed:
        """Runs until every request has ended, or until `until_s`; returns what was seen.

        Raises RuntimeError when the scheduler has requests and plans nothing for ever.
        """
        try:
            return self._run()
        finally:
            if self._recorder is not None:
                self._recorder.close()

    def _run(self) -> Observed:
        scheduler, events, observed = self.scheduler, self._events, self.observed
        for arrival in self.source.begin():
            heappush(events, (arrival.at_s, next(self._serial), arrival.request))
        now_s = 0.0
        while now_s < self._until_s:
            while events and events[0][0] <= now_s:
                at_s, _, request = heappop(events)
                self._arrive(request, at_s, now_s)
            if self.door.is_due(now_s):
                self._snapshot(now_s)
            step_s = self._step(now_s) if scheduler.has_work else 0.0
            if step_s:
                if now_s >= self._measure_from_s:
                    observed.steps += 1
                    observed.busy_s += step_s
                now_s += step_s
            elif events:
                now_s = events[0][0]
                self._snapshot(now_s)
            elif self._flights:
                raise RuntimeError(f"{len(self._flights)} requests are never served")
            else:
                break
        observed.end_s = now_s
        observed.preemptions = scheduler.preemptions
        observed.pre_warmed_tokens = scheduler.pre_warmer.computed_tokens - self._warm_before
        observed.evictions = {str(kind): n for kind, n in scheduler.pool.evictions.items()}
        return observed

    # ---------------------------------------------------------------- requests

    def _arrive(self, request: Request, at_s: float, now_s: float) -> None:
        """The door sees a request when it comes, `at_s`; the scheduler after the step, `now_s`."""
        flight = Flight(request, at_s)
        self.observed.flights.append(flight)
        sizes = Sizes(
            prompt_tokens=request.prompt_tokens, tenant=request.tenant, deadline_s=self.deadline_s
        )
        refusal, flight.refused_s = self.door.decide(sizes, at_s), at_s
        if refusal is None:
            answer = self._decisions.submit(
                request.id,
                token_ids(request.prompt),
                Sampling(max_tokens=request.output_tokens, ignore_eos=True),
                tenant=request.tenant,
            )
            if isinstance(answer, int):
                self._flights[request.id] = flight
                self.door.found(request.tenant, answer)
                return
            refusal, flight.refused_s = answer, now_s
        flight.refusal = refusal
        self._on_end()
        if refusal.retry_after_s is not None:
            again = self.source.refused(request, flight.refused_s, refusal.retry_after_s)
            self._schedule(again)

    def _schedule(self, arrivals: Iterable[tuple[float, Request]]) -> None:
        for at_s, request in arrivals:
            heappush(self._events, (at_s, next(self._serial), request))

    def _snapshot(self, now_s: float) -> None:
        scheduler, observed = self.scheduler, self.observed
        load = Backlog(
            waiting=len(scheduler.waiting),
            backlog_tokens=scheduler.backlog_tokens,
            tenant_backlog_tokens=dict(scheduler.backlog.by_tenant),
            drain_tokens_per_s=self._drain.tokens_per_s,
        )
        self.door.update(load, now_s)
        if now_s < self._measure_from_s:
            self._warm_before = scheduler.pre_warmer.computed_tokens
        live = scheduler.pool.live_pages
        idle = scheduler.pool.available_pages - scheduler.pool.free_pages
        observed.pages.append((now_s, live, idle))
        observed.working_set_tokens.append((now_s, self.source.working_set_tokens))
        observed.asked_again_tokens.append((now_s, self.source.asked_again_tokens))
        observed.awaited_pages.append((now_s, scheduler.pool.idle_of("awaited")))

    # ---------------------------------------------------------------- steps

    def _step(self, now_s: float) -> float:
        """Runs one step; returns its seconds, 0 when there was nothing to run."""
        decisions, scheduler, tokens = self._decisions, self.scheduler, self._tokens
        backlog_tokens = scheduler.backlog_tokens
        plan = decisions.plan(now_s)
        rows = plan.rows
        prefills = [row for row in rows if row.count > 1 or row.sample == "none"]
        if plan.prepare.new_slots:
            self._start(plan)
        seconds = self._times.seconds(rows) if rows else 0.0
        said = [tokens[row.slot] if row.sample == "last" else -1 for row in rows]
        result = StepResult(plan.step, said, [None] * len(rows), seconds)
        news = decisions.commit(result)
        if not rows:
            return 0.0
        self._drain.observe(backlog_tokens, scheduler.backlog_tokens, seconds)
        for row in prefills:
            flight = self._slots[row.slot]
            if flight is not None:
                self._computed.add(flight.request.tenant, flight.text, row.start + row.count)
        self._hear(news, now_s + seconds)
        return seconds

    def _start(self, plan: StepPlan) -> None:
        """Counts what sequences that get a slot compute again."""
        first = {row.slot: row.start for row in reversed(plan.rows)}
        for new in plan.prepare.new_slots:
            flight = self._slots[new.slot] = self._flights.get(new.request_id)
            if flight is None:
                continue
            tenant, text = flight.request.tenant, flight.text
            self._tokens[new.slot] = flight.request.output[0][0]
            flight.starts += 1
            if flight.generated_tokens:
                self._computed.add(tenant, text, flight.known_tokens - 1)
            known = self._computed.known_tokens(tenant, text)
            again = min(known, flight.known_tokens) - first[new.slot]
            flight.recomputed_tokens += max(0, again)

    def _hear(self, news: list[Choice], now_s: float) -> None:
        flights, gaps_s = self._flights, self.observed.gaps_s
        for choice in news:
            flight = flights[choice.request_id]
            if not flight.generated_tokens:
                flight.first_s = now_s
                flight.cached_tokens = choice.cached_tokens or 0
            elif flight.arrival_s >= self._measure_from_s:
                gaps_s.append(now_s - flight.last_s)
            flight.generated_tokens += 1
            flight.last_s = now_s
            if choice.finish is not None:
                self._end(flight, now_s)

    def _end(self, flight: Flight, now_s: float) -> None:
        request = flight.request
        del self._flights[request.id]
        flight.end_s = now_s
        self._computed.add(request.tenant, flight.text, flight.known_tokens - 1)
        end, arrivals = self.source.ended(request, now_s)
        if end is not None and self.replica.settings.retention:
            self._tell(request, end, now_s)
        self._schedule(arrivals)
        self._on_end()

    def _tell(self, request: Request, end: TurnEnd, now_s: float) -> None:
        """Tells the scheduler how a turn ended, as the API does."""
        form = end.next_prefix
        self._decisions.turn_ended(
            request.id,
            0,
            end.why,
            end.flip_token,
            next_prefix=None if form is None else token_ids(form),
            now_s=now_s,
        )

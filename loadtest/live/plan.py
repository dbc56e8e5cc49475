"""What a run is to do: which sessions, how many at once or at which times, for how long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from random import Random
from typing import NamedTuple

import msgspec

from loadtest.live.arrivals import Arrivals, arrivals
from loadtest.live.profiles import Part, Scale, Workload, script
from loadtest.live.scripts import Manner, Script, fits, replay
from loadtest.live.service import Service
from loadtest.live.text import Texts
from loadtest.traces import TraceRequest


class PlanError(ValueError):
    """A run that cannot be; the message says what is needed."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Closed loop: `users` at a time; open loop: `rate_per_s` sessions, or a trace."""

    name: str
    """Of the profile or the trace."""
    parts: tuple[Part, ...] = ()
    trace: tuple[TraceRequest, ...] = ()
    scale: Scale = Scale()
    seed: int = 0
    users: int = 1
    ramp_s: float = 0.0
    """Until all users are there."""
    rate_per_s: float | None = None
    arrivals: Arrivals = "poisson"
    cv: float = 1.0
    speed: float = 1.0
    """A trace so many times as fast."""
    duration_s: float = 120.0
    """Of sending; a trace may end before."""
    warm_up_s: float = 0.0
    """Not in the window."""
    drain_s: float = 60.0
    """For answers in flight when sending stops."""
    scrape_s: float = 1.0
    silence_limit_s: float = 120.0

    @property
    def open_loop(self) -> bool:
        """Whether requests come at their times, whatever became of those before."""
        return bool(self.trace) or self.rate_per_s is not None

    @property
    def about(self) -> str:
        """One line for people."""
        if self.trace:
            times = "" if self.speed == 1 else f", {self.speed:g} times as fast"
            return (
                f"{self.name}: open loop, {len(self.trace):,} requests at the trace's times{times}"
            )
        if self.rate_per_s is not None:
            cv = f", CV {self.cv:g}" if self.arrivals == "gamma" else ""
            return f"{self.name}: open loop, {self.rate_per_s:g} sessions/s, {self.arrivals}{cv}"
        return f"{self.name}: closed loop, {self.users} users"


class Session(NamedTuple):
    """What one client does, and when it begins."""

    due_s: float
    workload: Workload
    script: Script


class Sessions:
    """Makes a plan's sessions for one server; the same plan makes the same ones."""

    def __init__(self, plan: Plan, service: Service) -> None:
        self.plan = plan
        self._texts = Texts(service.tokens_per_word)
        self._manner = Manner(extensions=service.extensions, window_tokens=service.window_tokens)
        self._numbers = count()
        self._parts: dict[Workload, Part] = {part.workload: part for part in plan.parts}

    def next_script(self, workload: Workload) -> Script:
        """Returns the next session of a workload."""
        plan, number = self.plan, next(self._numbers)
        part = self._parts[workload]
        return script(part, plan.scale, self._texts, self._manner, seed=plan.seed, session=number)

    def schedule(self) -> Iterator[Session]:
        """Yields the sessions of an open loop in the order of their times."""
        plan = self.plan
        for number, request in enumerate(plan.trace):
            due_s = request.arrival_s / plan.speed
            key = (plan.seed, number)
            talk = replay(request, plan.scale.lengths, self._texts, self._manner, *key)
            yield Session(due_s, "trace", talk)
        if plan.trace or plan.rate_per_s is None:
            return
        random = Random(f"{plan.seed} arrivals")
        weights = [part.weight for part in plan.parts]
        for due_s in arrivals(plan.arrivals, plan.rate_per_s, plan.cv, random):
            (part,) = random.choices(plan.parts, weights)
            yield Session(due_s, part.workload, self.next_script(part.workload))


def within_window(
    trace: Sequence[TraceRequest], scale: float, window_tokens: int
) -> tuple[TraceRequest, ...]:
    """Returns the requests that a server's window holds; raises PlanError when it holds none."""
    held = tuple(one for one in trace if fits(one, scale, window_tokens))
    if not held:
        shortest = min(one.prompt_tokens + one.output_tokens for one in trace)
        raise PlanError(
            f"no request of the trace fits into the server's window of {window_tokens} tokens: the "
            f"shortest has {shortest:,} at scale 1, and the scale is {scale:g}"
        )
    return held

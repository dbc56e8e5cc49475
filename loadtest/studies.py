"""Questions a simulation answers: what retention saves, and what overload does to those let in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from random import Random
from typing import Literal

import msgspec

from cost_model.capacity import PAGE_TOKENS
from cost_model.machines import Machine
from cost_model.shape import ModelShape
from loadtest.agents import AgentSource
from loadtest.conversations import ConversationShape, Range, log_uniform
from loadtest.replica import Replica, Settings, replica
from loadtest.report import Report, report, request_s
from loadtest.simulator import Simulator
from loadtest.sources import TraceSource
from loadtest.traces import TraceRequest

Policy = Literal["plain LRU", "no pre-warm", "retention"]
POLICIES: tuple[Policy, ...] = ("plain LRU", "no pre-warm", "retention")
FIRST_TOKEN_TARGET_S = 10.0
DEADLINE_S = 8.0
"""What admission is asked to keep, so that its errors stay inside the target."""
AMPLE_PAGES_PER_AGENT = 8192
"""Four windows: more than an agent's conversations can fill while they are watched."""
SAMPLE = 2000
"""Requests drawn to know their mean work."""


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """GPUs of a kind, and for how long they are watched."""

    shape: ModelShape
    machine: Machine
    gpus: int
    seed: int
    warm_up_s: float
    until_s: float


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run of agents under one policy."""

    policy: Policy
    agents: int
    cache_share: float
    """Pages of the cache, of the working set."""
    working_set_pages: float
    asked_again_pages: float
    """Of the working set, what the next requests will begin with."""
    live_pages: float
    awaited_pages: float
    """Means over the measured time."""
    utilisation: float
    """That of the run with room for all pages."""
    report: Report

    @property
    def recomputed_per_request(self) -> float:
        """Tokens computed again, by completed request: closed loops complete different numbers."""
        return self.report.recomputed_tokens / max(1, self.report.completed)

    @property
    def user_first_token_s(self) -> float:
        """Mean time to the first token of a later message of the user."""
        found = self.report.first_token_s.get("user")
        return found.mean if found is not None else 0.0

    @property
    def turn_s(self) -> float:
        """Mean time from one message of an agent's user to the next."""
        found = self.report.first_token_s
        turns = sum(found[kind].count for kind in ("first", "user") if kind in found)
        return self.agents * self.report.seconds / max(1, turns)

    def least_wait_s(self, pages: float) -> float:
        """What a turn has to wait for room, in the mean, where there are only so many pages; this
        run had room for all.

        A turn holds pages while it runs and while it waits for its tools. With fewer pages than all
        turns hold at this pace, they go at the pace at which pages become free (Little's law).
        """
        return max(0.0, self.turn_s * ((self.live_pages + self.awaited_pages) / pages - 1))


def agents_run(
    group: Group,
    shape: ConversationShape,
    agents: int,
    policy: Policy,
    *,
    share: float = 0.0,
    ample: Run | None = None,
) -> Run:
    """Runs agents with pages for `share` of the working set they had in the run `ample`.

    `ample` None: with more pages than they can fill.
    """
    pages = agents * AMPLE_PAGES_PER_AGENT
    if ample is not None:
        pages = max(1, round(share * ample.working_set_pages))
    settings = Settings(
        pages=pages,
        rows_per_gpu=256,
        queue_s=1e6,
        retention=policy != "plain LRU",
        pre_warm=policy == "retention",
    )
    target = replica(group.shape, group.machine, group.gpus, settings)
    source = AgentSource(
        shape,
        agents=agents,
        seed=group.seed,
        window_tokens=target.config.max_model_len,
        until_s=group.until_s,
    )
    simulator = Simulator(target, source, measure_from_s=group.warm_up_s, until_s=group.until_s)
    observed = simulator.run()
    found = report(
        target,
        observed,
        first_token_target_s=FIRST_TOKEN_TARGET_S,
        measured_from_s=group.warm_up_s,
    )
    held = _mean(n / PAGE_TOKENS for _, n in _measured(observed.working_set_tokens, group))
    asked = _mean(n / PAGE_TOKENS for _, n in _measured(observed.asked_again_tokens, group))
    live = _mean(pages for _, pages, _ in _measured(observed.pages, group))
    awaited = _mean(pages for _, pages in _measured(observed.awaited_pages, group))
    return Run(
        policy=policy,
        agents=agents,
        cache_share=pages / (held if ample is None else ample.working_set_pages),
        working_set_pages=held,
        asked_again_pages=asked,
        live_pages=live,
        awaited_pages=awaited,
        utilisation=found.utilisation if ample is None else ample.utilisation,
        report=found,
    )


def curve(
    group: Group, shape: ConversationShape, ample: Run, shares: Sequence[float]
) -> Iterator[Run]:
    """Yields a run of every policy for caches of these shares of `ample`'s working set."""
    for share in shares:
        for policy in POLICIES:
            yield agents_run(group, shape, ample.agents, policy, share=share, ample=ample)


# -------------------------------------------------------------------- overload


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that come whether or not others are served; nothing is shared among them."""

    prompt_tokens: Range = (500, 16_000)
    output_tokens: Range = (50, 500)
    seconds: float = 60.0


class Overload(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a stream."""

    load: float
    """Work that came, of the work that steps of the target's length have room for."""
    report: Report


def overload_run(group: Group, stream: Stream, load: float, settings: Settings) -> Overload:
    """Runs a stream with `load` times the work that the replica has room for."""
    target = replica(group.shape, group.machine, group.gpus, settings)
    trace = poisson(target, stream, load, group.seed)
    simulator = Simulator(target, TraceSource(trace), deadline_s=DEADLINE_S)
    observed = simulator.run()
    return Overload(
        load=load,
        report=report(
            target,
            observed,
            waits=simulator.door.waits,
            first_token_target_s=FIRST_TOKEN_TARGET_S,
        ),
    )


def poisson(target: Replica, stream: Stream, load: float, seed: int) -> list[TraceRequest]:
    """Returns requests at random times, as many as make `load` in the mean."""
    random, top_k = Random(f"{seed} {load}"), target.shape.index_topk

    def drawn() -> tuple[int, int]:
        return log_uniform(random, stream.prompt_tokens), log_uniform(random, stream.output_tokens)

    mean_s = (
        sum(sum(request_s(target.coefficients, top_k, 0, *drawn())) for _ in range(SAMPLE)) / SAMPLE
    )
    rate = load * target.room / mean_s
    requests, now_s = [], random.expovariate(rate)
    while now_s < stream.seconds:
        requests.append(TraceRequest(now_s, *drawn()))
        now_s += random.expovariate(rate)
    return requests


def _measured(samples: Sequence[tuple[float, ...]], group: Group) -> Iterator[tuple[float, ...]]:
    return (one for one in samples if one[0] >= group.warm_up_s)


def _mean(values: Iterable[float]) -> float:
    given = list(values)
    return sum(given) / max(1, len(given))

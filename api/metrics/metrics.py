"""Everything an operator can see of one server: what it counts, and how its engine is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from prometheus_client.metrics_core import Metric as Family

from api.metrics import names
from api.metrics.cost import Costs
from api.metrics.engine_state import State, engine_counters, engine_state
from api.metrics.http import HttpCounts
from api.metrics.process import ProcessUse
from api.metrics.requests import RequestCounts
from api.metrics.steps import StepCounts
from api.metrics.values import Labels, Values, counted_families, number_family
from engine.client import EngineClient

ENGINE, ROLE = "0", "mixed"
"""Values of two base labels: one engine, which prefills and decodes."""


class Metrics:
    """Counts from the start; the engine's own numbers come with `attach`."""

    def __init__(self, model_name: str, draining: Callable[[], bool] = lambda: False) -> None:
        """draining: whether the server is about to stop."""
        self.base: Labels = (model_name, ENGINE, ROLE)
        self.values = Values()
        self.requests = RequestCounts(self.values)
        self.http = HttpCounts(self.values)
        self.process = ProcessUse(self.values)
        self._scrape_seconds = self.values.number(names.SCRAPE_SECONDS)
        self._restarts = self.values.number(names.ENGINE_RESTARTS)
        self.values.number(names.API_RESTARTS)
        self._draining = draining
        self._engine: EngineClient | None = None
        self._before: State = {}
        """What engines that are gone had counted."""
        self._costs: Costs | None = None
        self._inter_token_target_s = 0.0

    def attach(
        self,
        engine: EngineClient,
        costs: Costs,
        *,
        inter_token_target_s: float,
        usage_cost: bool = False,
    ) -> None:
        """Counts the engine's steps from now on, in place of another's if there was one.

        usage_cost: requests are told what they cost.
        """
        if self._engine is not None:
            self._before = self._counted_by_engines()
            self._restarts.add()
        self._engine, self._costs = engine, costs
        self._inter_token_target_s = inter_token_target_s
        self.requests.costs = costs if usage_cost else None
        engine.on_steps = StepCounts(self.values, costs).take

    def families(self) -> Iterator[Family]:
        """Yields every metric as it is now."""
        for metric, series in self.state().items():
            yield number_family(metric, series, self.base)
        yield from counted_families(self.values, self.base)

    def state(self) -> State:
        """Returns what is not counted but read: queue, pages, prices."""
        engine, costs = self._engine, self._costs
        alive = engine is not None and engine.alive
        state: State = {
            names.ENGINE_UP: {(): float(alive)},
            names.READY: {(): float(alive and not self._draining())},
            names.DRAINING: {(): float(self._draining())},
        }
        if engine is not None:
            now_s = asyncio.get_running_loop().time()
            if alive:
                state |= engine_state(engine)
            state |= self._counted_by_engines()
            if engine.snapshot is not None:
                state[names.SNAPSHOT_AGE] = {(): now_s - engine.heard_s}
            state[names.INTER_TOKEN_TARGET] = {(): self._inter_token_target_s}
        if costs is not None:
            state[names.PRICE] = {(): costs.usd_per_hour}
            state[names.EXPECTED_PRICE] = dict(costs.curve)
            state[names.COST_MODEL] = {(costs.model.preset, costs.machine): 1.0}
        return state

    def _counted_by_engines(self) -> State:
        """A new engine counts from 0; the server's counters must not go back."""
        counted = dict(self._before)
        if self._engine is not None:
            for metric, series in engine_counters(self._engine).items():
                before = counted.get(metric, {})
                counted[metric] = before | {
                    labels: before.get(labels, 0.0) + value for labels, value in series.items()
                }
        return counted

    def scraped(self, seconds: float) -> None:
        """Takes down what the last scrape took."""
        self._scrape_seconds.value = seconds

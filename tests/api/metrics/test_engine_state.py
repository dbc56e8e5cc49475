"""api.metrics.engine_state and metrics: what is shown while engines come and go."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from api.metrics import names
from api.metrics.cost import Costs
from api.metrics.engine_state import State
from api.metrics.metrics import Metrics
from cost_model.shape import V32
from engine.messages import Snapshot
from tests.api.scripted_engine import ScriptedEngine

SNAPSHOT = Snapshot(
    step=7,
    running=2,
    waiting=1,
    backlog_tokens=50,
    live_pages=10,
    idle_pages={"stable": 4, "dead": 2},
    free_pages=48,
    total_pages=64,
    prefill_tokens_per_s=0.0,
    decode_tokens_per_s=0.0,
    preemptions=3,
    evictions={"dead": 5},
    pre_warmed_tokens=11,
    pre_warm_hit_tokens=6,
    kept_reasoning_tokens=9,
    dropped_reasoning_tokens=4,
)


def engine_with(snapshot: Snapshot | None) -> Any:
    engine: Any = ScriptedEngine(lambda submit, choice: [0], vocab_size=320)
    engine.snapshot, engine.heard_s = snapshot, 0.0
    return engine


def attach(metrics: Metrics, engine: Any) -> None:
    costs = Costs.of(V32, "h800", None, 4096)
    metrics.attach(engine, costs, inter_token_target_s=0.1)


def counters(state: State) -> State:
    return {metric: series for metric, series in state.items() if metric.kind == "counter"}


def test_counters_of_engines_add_up_and_gauges_do_not() -> None:
    async def scenario() -> None:
        metrics = Metrics("model")
        old = engine_with(SNAPSHOT)
        attach(metrics, old)
        before = metrics.state()
        assert before[names.RUNNING] == {(): 2}
        old.death = "killed"
        dead = metrics.state()
        assert counters(dead) == counters(before), "what was counted was counted"
        assert names.RUNNING not in dead, "and nothing runs any more"
        assert dead[names.ENGINE_UP] == dead[names.READY] == {(): 0.0}

        new = engine_with(None)
        attach(metrics, new)
        loaded = metrics.state()
        assert loaded[names.ENGINE_UP] == {(): 1.0}
        assert counters(loaded) == counters(before), "its first report is still to come"
        new.snapshot = msgspec.structs.replace(
            SNAPSHOT, running=0, preemptions=1, evictions={"dead": 1, "awaited": 2}
        )
        after = metrics.state()
        assert after[names.RUNNING] == {(): 0}
        assert after[names.PREEMPTIONS] == {(): 4}
        assert after[names.EVICTED] == {("dead",): 6, ("awaited",): 2}
        assert after[names.ENDED_REASONING] == {("kept",): 18, ("dropped",): 8}

        new.death = "killed"
        attach(metrics, engine_with(SNAPSHOT))
        assert metrics.state()[names.PREEMPTIONS] == {(): 7}
        assert metrics.values.numbers()[names.ENGINE_RESTARTS] == {(): 2}

    asyncio.run(scenario())


def test_a_server_whose_first_engine_loads_has_no_restart() -> None:
    async def scenario() -> None:
        metrics = Metrics("model")
        assert metrics.values.numbers()[names.ENGINE_RESTARTS] == {(): 0}
        attach(metrics, engine_with(SNAPSHOT))
        assert metrics.values.numbers()[names.ENGINE_RESTARTS] == {(): 0}

    asyncio.run(scenario())

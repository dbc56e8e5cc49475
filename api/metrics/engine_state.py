"""The engine's last snapshot as gauges and counters; read at a scrape, so it costs nothing else.

Gauges hold while the engine lives; what it counted was counted, whatever becomes of it.
"""

from __future__ import annotations

from api.metrics import names
from api.metrics.names import Metric
from api.metrics.values import Labels
from api.version import version
from engine.client import EngineClient
from engine.messages import Ready, Snapshot

State = dict[Metric, dict[Labels, float]]
"""Metric -> label values -> number."""


def engine_state(engine: EngineClient) -> State:
    """Returns how an engine is: all its gauges but the age of the snapshot."""
    state = _constants(engine.ready)
    if engine.snapshot is not None:
        state |= _gauges(engine.snapshot)
    return state


def engine_counters(engine: EngineClient) -> State:
    """Returns what an engine has counted since it was started."""
    return {} if engine.snapshot is None else _counters(engine.snapshot)


def _constants(ready: Ready) -> State:
    info = (
        version(),
        ready.model_type,
        ready.device,
        ready.dtype,
        str(ready.page_tokens),
        str(ready.total_pages),
        str(ready.max_model_len),
    )
    memory: dict[Labels, float] = {(use,): float(size) for use, size in ready.memory.items()}
    return {names.ENGINE_INFO: {info: 1.0}, names.MEMORY: memory}


def _gauges(snapshot: Snapshot) -> State:
    pages: dict[Labels, float] = {
        ("live",): snapshot.live_pages,
        ("free",): snapshot.free_pages,
        **{(state,): count for state, count in snapshot.idle_pages.items()},
    }
    return {
        names.RUNNING: {(): snapshot.running},
        names.WAITING: {(): snapshot.waiting},
        names.BACKLOG: {(): snapshot.backlog_tokens},
        names.DRAIN_RATE: {(): snapshot.drain_tokens_per_s},
        names.PAGES: pages,
        names.PAGE_USAGE: {(): snapshot.live_pages / snapshot.total_pages},
        names.PRE_WARMS: {(): snapshot.pre_warms},
    }


def _counters(snapshot: Snapshot) -> State:
    return {
        names.PREEMPTIONS: {(): snapshot.preemptions},
        names.EVICTED: {(state,): count for state, count in snapshot.evictions.items()},
        names.PRE_WARMED: {(): snapshot.pre_warmed_tokens},
        names.PRE_WARM_HITS: {(): snapshot.pre_warm_hit_tokens},
        names.ENDED_REASONING: {
            ("kept",): snapshot.kept_reasoning_tokens,
            ("dropped",): snapshot.dropped_reasoning_tokens,
        },
    }

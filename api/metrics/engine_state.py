"""The engine's last snapshot as gauges and counters; read at a scrape, so it costs nothing else."""

from __future__ import annotations

from api.metrics import names
from api.metrics.names import Metric
from api.metrics.values import Labels
from api.version import version
from engine.client import EngineClient
from engine.messages import Ready, Snapshot


def engine_state(engine: EngineClient, now_s: float) -> dict[Metric, dict[Labels, float]]:
    """Returns metric -> label values -> number. now_s: by the event loop's clock."""
    state = _constants(engine.ready)
    if engine.snapshot is not None:
        state |= _snapshot(engine.snapshot)
        state[names.SNAPSHOT_AGE] = {(): now_s - engine.heard_s}
    return state


def _constants(ready: Ready) -> dict[Metric, dict[Labels, float]]:
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


def _snapshot(snapshot: Snapshot) -> dict[Metric, dict[Labels, float]]:
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
        names.PREEMPTIONS: {(): snapshot.preemptions},
        names.EVICTED: {(state,): count for state, count in snapshot.evictions.items()},
        names.PRE_WARMED: {(): snapshot.pre_warmed_tokens},
        names.PRE_WARM_HITS: {(): snapshot.pre_warm_hit_tokens},
        names.PRE_WARMS: {(): snapshot.pre_warms},
        names.ENDED_REASONING: {
            ("kept",): snapshot.kept_reasoning_tokens,
            ("dropped",): snapshot.dropped_reasoning_tokens,
        },
    }

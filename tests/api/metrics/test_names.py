"""api.metrics.names: conventions, and a bound on the number of series."""

from __future__ import annotations

import re

import pytest

from api.backend import Backend
from api.config import ServerConfig
from api.metrics import names
from api.metrics.http import UNCOUNTED, UNROUTED
from api.server import create_app

MOST_SERIES = 400
PROCESS_SERIES = 7
MEMORY_USES = 8
PHASES = 2
CLOSED = {
    "phase": PHASES,
    "source": 3,
    "component": len(names.FLOP_COMPONENTS),
    "position": len(names.COST_POSITIONS),
    "finish_reason": len(names.FINISH_REASONS),
    "reason": len(names.REFUSAL_REASONS),
    "fate": 2,
    "state": 5,
    "use": MEMORY_USES,
    "code": len(names.CODES),
}
ONE_SERIES = {names.ENGINE_INFO, names.COST_MODEL}


@pytest.mark.parametrize("metric", names.METRICS.values(), ids=lambda metric: metric.name)
def test_names_follow_the_conventions(metric: names.Metric) -> None:
    assert re.fullmatch(r"winnow_[a-z][a-z0-9_]*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.help and metric.help.endswith(".")
    assert not {"user", "key", "tenant", "request_id", *names.BASE_LABELS} & set(metric.labels)
    assert bool(metric.edges) == (metric.kind == "histogram")
    assert list(metric.edges) == sorted(set(metric.edges))
    assert not re.search(r"_(ms|us|millis\w*|kb|mb|perc\w*)(_|$)", metric.name)


def test_the_usual_goals_are_bucket_edges() -> None:
    assert {0.02, 0.025, 0.05, 0.1} <= set(names.TOKEN_S)
    assert {0.2, 0.5, 1, 2} <= set(names.FIRST_TOKEN_S)
    assert 2048 in names.PROMPT_TOKENS


def routes() -> set[str]:
    app = create_app(Backend(("model",)), ServerConfig())
    return {route.path for route in app.routes if hasattr(route, "methods")} - UNCOUNTED


def test_one_engine_has_no_more_series_than_promised() -> None:
    """Every label with every value it can have, at once."""
    series = PROCESS_SERIES
    for metric in names.METRICS.values():
        combinations = 1
        if metric not in ONE_SERIES:
            for label in metric.labels:
                combinations *= CLOSED.get(label, 0) or len(routes() | {UNROUTED})
        each = len(metric.edges) + 3 if metric.edges else 1
        series += combinations * each
    assert series <= MOST_SERIES

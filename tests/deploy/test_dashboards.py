"""deploy.grafana: what is committed is what is generated, and asks only for what we expose."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from api.metrics import names
from deploy.grafana.generate import FOLDER, rendered
from tests.deploy.promql import board_queries, boards, read_query, rules

SCRAPED = {"job", "instance"}
SERIES = {
    sample: {*names.BASE_LABELS, *metric.labels, *SCRAPED}
    | ({"le"} if sample.endswith("_bucket") else set())
    for metric in names.METRICS.values()
    for sample in metric.sample_names
}
"""Every series of ours -> its labels."""
VALUES = {
    "phase": {"prefill", "decode"},
    "source": {"computed", "cached", "pre_warmed"},
    "code": set(names.CODES),
    "preset": {"paper", "roofline"},
    "job": {"winnow"},
}
QUERIES = [*board_queries()]


def problems(query: str, series: dict[str, set[str]]) -> list[str]:
    """What a query asks for that there is not."""
    read = read_query(query)
    found = []
    for selector in read.selectors:
        labels = series.get(selector.name)
        if labels is None:
            found.append(f"no metric {selector.name}")
            continue
        for label, operator, value in selector.matchers:
            if label not in labels:
                found.append(f"{selector.name} has no label {label}")
            if label == "le" and value not in edges(selector.name):
                found.append(f"{selector.name} has no bucket {value}")
            if operator in ("=", "!=") and label in VALUES and value not in VALUES[label]:
                found.append(f"{label} is never {value}")
    known = {label for selector in read.selectors for label in series.get(selector.name, ())}
    return found + [f"grouped by {label}" for label in sorted(read.grouping - known)]


def edges(sample: str) -> set[str]:
    for metric in names.METRICS.values():
        if sample in metric.sample_names:
            return {str(float(edge)) for edge in metric.edges}
    return set()


def test_the_committed_boards_are_the_generated_ones() -> None:
    committed = {file.name: file.read_text() for file in FOLDER.iterdir()}
    assert committed == rendered(), "run: python -m deploy.grafana.generate"


@pytest.mark.parametrize(
    ("board", "panel", "query"), QUERIES, ids=[f"{b}-{p}" for b, p, _ in QUERIES]
)
def test_a_query_asks_for_what_is_there(board: str, panel: str, query: str) -> None:
    assert problems(query, SERIES) == []


def test_rules_ask_for_what_is_there() -> None:
    recorded = {rule["record"]: rule for rule in rules() if "record" in rule}
    everything = SERIES | {"up": SCRAPED}
    for name, rule in recorded.items():
        labels = read_query(rule["expr"]).grouping | set(rule.get("labels", ()))
        everything[name] = labels | {"model_name", "phase"}
    for rule in rules():
        assert problems(rule["expr"], everything) == [], rule


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("rate(winnow_tokens[1m])", "no metric winnow_tokens"),
        ('sum by (phase) (winnow_pages{state="live"})', "grouped by phase"),
        ('winnow_pages{phase="decode"}', "winnow_pages has no label phase"),
        (
            'winnow_inter_token_seconds_bucket{le="0.11"}',
            "winnow_inter_token_seconds_bucket has no bucket 0.11",
        ),
        ('winnow_tokens_total{source="cache"}', "source is never cache"),
    ],
)
def test_a_wrong_query_is_found(query: str, problem: str) -> None:
    assert problems(query, SERIES) == [problem]


@pytest.mark.parametrize("query", [query for _, _, query in QUERIES])
def test_types_are_respected(query: str) -> None:
    """Rates are of counters and histograms, and those are never read as they are."""
    counted = {
        sample
        for metric in names.METRICS.values()
        if metric.kind != "gauge"
        for sample in metric.sample_names
    }
    rated = set(re.findall(r"(?:rate|increase)\(([a-z_]+)\{", query))
    read = {selector.name for selector in read_query(query).selectors}
    assert rated == read & counted


@pytest.mark.parametrize("name", list(boards()))
def test_a_board_is_well_formed(name: str) -> None:
    board = boards()[name]
    assert board["uid"] == "winnow-" + Path(name).stem
    assert [v["name"] for v in board["templating"]["list"]] == ["source", "model", "instance"]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells and all(x < 24 for x, _ in own), panel["title"]
        cells |= own
        if panel["type"] != "row":
            assert panel["title"] and panel["description"] and panel["fieldConfig"]
            assert all(t["datasource"]["uid"] == "${source}" for t in panel["targets"])


def test_every_metric_is_on_a_board_or_in_a_rule() -> None:
    texts = [query for _, _, query in QUERIES] + [rule["expr"] for rule in rules()]
    read = {selector.name for text in texts for selector in read_query(text).selectors}
    unseen = {
        metric.name for metric in names.METRICS.values() if not read & set(metric.sample_names)
    }
    assert unseen == {"winnow_engine_info"}, "it fills the boards' variables"

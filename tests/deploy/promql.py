"""A tokenizer of PromQL, enough to see which series a query reads and by what it groups."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
OPERATORS = {"and", "or", "unless", "bool", "offset"}
_TOKEN = re.compile(
    r"""
    (?P<string>"(?:[^"\\]|\\.)*")
    |(?P<duration>\[[^\]]*\])
    |(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)
    |(?P<number>[0-9.]+(?:e[+-]?[0-9]+)?)
    |(?P<mark>=~|!~|!=|==|>=|<=|[-+*/%^(){},=<>])
    """,
    re.VERBOSE,
)


class Selector(NamedTuple):
    """The series a query reads: a name, and (label, operator, value) matchers."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]


class Query(NamedTuple):
    selectors: tuple[Selector, ...]
    grouping: frozenset[str]
    """Labels in by (...), on (...) and the like."""


def read_query(text: str) -> Query:
    """Returns what a query reads. Raises ValueError for what is no token."""
    tokens = _tokens(text)
    selectors: list[Selector] = []
    grouping: set[str] = set()
    place = 0
    while place < len(tokens):
        kind, token = tokens[place]
        place += 1
        following = tokens[place][1] if place < len(tokens) else ""
        if kind != "name" or token in OPERATORS:
            continue
        if token in GROUPING and following == "(":
            end = place + [value for _, value in tokens[place:]].index(")")
            grouping |= {value for kind, value in tokens[place:end] if kind == "name"}
            place = end
        elif following == "{":
            end = place + [value for _, value in tokens[place:]].index("}")
            selectors.append(Selector(token, tuple(_matchers(tokens[place + 1 : end]))))
            place = end
        elif following != "(" and following not in GROUPING:
            selectors.append(Selector(token, ()))
    return Query(tuple(selectors), frozenset(grouping))


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, place = [], 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        found = _TOKEN.match(text, place)
        if found is None:
            raise ValueError(f"no token at {text[place:][:30]!r}")
        assert found.lastgroup is not None
        tokens.append((found.lastgroup, found[0]))
        place = found.end()
    return tokens


def _matchers(tokens: list[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    parts = [value for _, value in tokens if value != ","]
    for label, operator, value in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        yield label, operator, json.loads(value)


def boards() -> dict[str, dict[str, Any]]:
    """Returns file name -> committed dashboard."""
    files = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
    return {file.name: json.loads(file.read_text()) for file in files}


def board_queries() -> Iterator[tuple[str, str, str]]:
    """Yields (board, panel, query)."""
    for name, board in boards().items():
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                yield name, panel["title"], target["expr"]


def rules() -> list[dict[str, Any]]:
    """Returns every recording and alert rule."""
    found = []
    for file in ("recording.yml", "alerts.yml"):
        for group in yaml.safe_load((DEPLOY / "prometheus" / file).read_text())["groups"]:
            found += group["rules"]
    return found

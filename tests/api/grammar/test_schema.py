from __future__ import annotations

import json
from typing import Any

import pytest

from api.grammar.schema import (
    MAX_SCHEMA_BYTES,
    MAX_SCHEMA_DEPTH,
    SchemaError,
    check_limits,
    resolve,
    sealed,
    with_options,
)


def nested(levels: int, *, by: str = "object") -> dict[str, Any]:
    """A schema of so many levels."""
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels - 1):
        if by == "object":
            schema = {"type": "object", "properties": {"a": schema}}
        elif by == "array":
            schema = {"type": "array", "items": schema}
        else:
            schema = {"anyOf": [schema]}
    return schema


@pytest.mark.parametrize("by", ["object", "array", "anyOf"])
def test_depth_is_counted_in_schemas(by: str) -> None:
    check_limits(nested(MAX_SCHEMA_DEPTH, by=by))
    for levels in (MAX_SCHEMA_DEPTH + 1, 5000):
        with pytest.raises(SchemaError, match="deeper than 32 levels"):
            check_limits(nested(levels, by=by))


def test_data_counts_too() -> None:
    data: Any = []
    for _ in range(100_000):
        data = [data]
    with pytest.raises(SchemaError, match="deeper"):
        check_limits({"const": data})


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": ["x" * 100] * 1000},
        {"properties": {f"p{i}": True for i in range(40_000)}},
        {"description": "é" * 40_000},
        {"allOf": [{"title": "y" * 50}] * 2000},
    ],
)
def test_size_is_counted_in_bytes(schema: dict[str, Any]) -> None:
    assert len(json.dumps(schema, ensure_ascii=False).encode()) > MAX_SCHEMA_BYTES
    with pytest.raises(SchemaError, match="more than 65536 bytes"):
        check_limits(schema)


def test_the_largest_schema_is_taken() -> None:
    schema = {"enum": ["x"]}
    schema["enum"][0] *= MAX_SCHEMA_BYTES - len(json.dumps(schema)) + 1
    check_limits(schema)
    with pytest.raises(SchemaError):
        check_limits({"enum": [schema["enum"][0] + "x"]})


@pytest.mark.parametrize("schema", [None, 3, "x", [], {"const": "\ud800"}])
def test_what_is_no_schema_is_refused(schema: object) -> None:
    with pytest.raises(SchemaError):
        check_limits(schema)


ROOT = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "properties": {"a/b": {"type": "integer"}, "definitions": {"type": "null"}},
    "$def": {"x": {"type": "string"}},
    "$defs": {"tree": {"items": {"$ref": "#/$defs/tree"}}, "unused": {"$ref": "#/nowhere"}},
}


@pytest.mark.parametrize(
    ("pointer", "found"),
    [
        ("#/properties/a~1b", {"type": "integer"}),
        ("#/properties/a%2Fb", None),
        ("#/$def/x", {"type": "string"}),
        ("#", ROOT),
    ],
)
def test_references_are_json_pointers(pointer: str, found: Any) -> None:
    if found is None:
        with pytest.raises(SchemaError, match="leads nowhere"):
            resolve(pointer, ROOT)
    else:
        assert resolve(pointer, ROOT) == found


@pytest.mark.parametrize("pointer", ["http://x/y", "other.json#/a", "#name", "#/properties/z", ""])
def test_references_stay_inside_and_lead_somewhere(pointer: str) -> None:
    with pytest.raises(SchemaError, match="leads"):
        sealed({"$ref": pointer}, ROOT)


def test_a_part_takes_along_what_it_refers_to_and_nothing_else() -> None:
    part = sealed({"items": {"$ref": "#/$defs/tree"}}, ROOT)
    assert part == {
        "items": {"$ref": "#/$defs/r0"},
        "$defs": {"r0": {"items": {"$ref": "#/$defs/r0"}}},
    }
    assert sealed({"const": {"$ref": "data"}}, ROOT) == {"const": {"$ref": "data"}}


def test_a_schema_is_sealed_as_a_whole() -> None:
    whole = sealed(ROOT, ROOT)
    assert whole == {"properties": ROOT["properties"]}
    assert sealed(True, True) == {} and sealed(False, False) == {"enum": []}


def test_options_are_those_of_the_format() -> None:
    exact = with_options({"type": "string", "x-guidance": 1}, strict=True, spaces=None)
    assert exact == {"type": "string", "x-guidance": 1} | {"x-guidance": exact["x-guidance"]}
    options = {"lenient": False, "whitespace_flexible": False}
    options |= {"item_separator": ", ", "key_separator": ": "}
    assert exact["x-guidance"] == options, "what the caller wrote there does not count"
    loose = with_options({}, strict=False, spaces=" ")["x-guidance"]
    assert loose == {"lenient": True, "whitespace_pattern": " "}

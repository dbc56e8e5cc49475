from __future__ import annotations

from typing import Any

import pytest

from api.grammar.schema import SchemaError
from api.grammar.values import ANY_TEXT, values_of
from tests.api.grammar.grammars import accepts, block, call, forced, strict

OTHERS = ["object", "array", "number", "integer", "boolean", "null"]


@pytest.mark.parametrize(
    ("schema", "texts", "other"),
    [
        ({"type": "string"}, [ANY_TEXT], None),
        ({"type": "integer"}, [], {"type": "integer"}),
        ({}, [ANY_TEXT], {"type": OTHERS}),
        (True, [ANY_TEXT], {"type": OTHERS}),
        ({"type": ["string", "null"], "maxLength": 3}, ["/(?s:.{0,3})/"], {"type": ["null"]}),
        ({"enum": ["a", 1]}, ['"a"'], {"enum": [1]}),
        ({"const": "a"}, ['"a"'], None),
        ({"const": 1}, [], {"enum": [1]}),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, [ANY_TEXT], {"type": "null"}),
        ({"$ref": "#/$defs/s", "title": "T"}, [ANY_TEXT], None),
        ({"type": "string", "minLength": 2}, ["/(?s:.{2,})/"], None),
        ({"allOf": [{"type": "string"}]}, [], {"allOf": [{"type": "string"}]}),
    ],
)
def test_strings_are_text_and_the_rest_is_json(schema: Any, texts: list[str], other: Any) -> None:
    assert values_of(schema, {"$defs": {"s": {"type": "string"}}}, strict=True) == (texts, other)


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"$ref": "#/$defs/loop"},
        {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/around"}]},
        {"anyOf": []},
        {"enum": []},
        {"enum": "a"},
        {"type": "string", "maxLength": "3"},
    ],
)
def test_schemas_without_values_are_refused(schema: Any) -> None:
    root = {
        "$defs": {
            "loop": {"$ref": "#/$defs/loop"},
            "around": {"anyOf": [{"$ref": "#/$defs/around"}, {"type": "null"}]},
        }
    }
    with pytest.raises(SchemaError):
        values_of(schema, root, strict=True)


def test_an_unknown_format_counts_when_it_is_strict() -> None:
    schema = {"type": "string", "format": "colour"}
    assert values_of(schema, {}, strict=False).texts == [ANY_TEXT]
    assert values_of(schema, {}, strict=True) == ([], schema)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"pattern": "^[a-z]+$"}, ["abc"], ["", "aBc", "abc1"]),
        ({"pattern": "b+"}, ["b", "abba", "x\nb"], ["", "aaa"]),
        ({"pattern": "^b"}, ["b", "b\nc"], ["ab"]),
        ({"pattern": r"\d\$$"}, ["1$", "x1$"], ["1", "$1"]),
        ({"pattern": "^a/b$"}, ["a/b"], ["ab"]),
        ({"pattern": "^(a|b)$"}, ["a", "b"], ["ab", ""]),
        ({"pattern": "^[^/]+$", "maxLength": 3}, ["abc"], ["abcd", "a/b"]),
        ({"minLength": 2, "maxLength": 3}, ["éé", "abc"], ["a", "abcd"]),
        ({"format": "date"}, ["2026-11-22"], ["2026-13-01", "22.11.2026", "2026-11-22x"]),
        ({"format": "time"}, ["12:30:00Z", "01:02:03.5+01:00"], ["24:00:00Z", "12:30"]),
        ({"format": "date-time"}, ["2026-11-22T12:30:00Z"], ["2026-11-22 12:30:00Z"]),
        ({"format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567"]),
        ({"format": "ipv4"}, ["127.0.0.1", "255.9.10.99"], ["256.1.1.1", "1.2.3"]),
        ({"format": "email"}, ["a.b+c@example.org"], ["a@b", "@example.org", "a b@example.org"]),
        ({"format": "hostname"}, ["a-b.example"], ["-a.example", "a..b"]),
        ({"enum": ["a", "ab", 'q"</']}, ["a", "ab", 'q"</'], ["b", "abc", ""]),
    ],
)
def test_text_is_held_to_its_keywords(
    schema: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    kind = {} if "enum" in schema else {"type": "string"}
    grammar = forced(strict("f", "x", x=kind | schema))
    for text in good:
        assert accepts(grammar, block(call("f", {"x": text}))), text
    for text in bad:
        assert not accepts(grammar, block(call("f", {"x": text}))), text


@pytest.mark.parametrize("pattern", ["^a|b$", "a^b", "(?=a)", "a\nb", "^a$|c"])
def test_a_pattern_that_is_not_sure_to_mean_the_same_is_left_to_json(pattern: str) -> None:
    schema = {"type": "string", "pattern": pattern}
    assert values_of(schema, {}, strict=True) == ([], schema)


# ---------------------------------------------------------------- what must not take for ever


def test_a_pattern_of_open_brackets_is_read_in_one_pass() -> None:
    opens = "[" * 4096
    assert len(values_of({"type": "string", "pattern": opens}, {}, strict=False).texts) == 1
    with pytest.raises(SchemaError, match="4097 characters; the limit is 4096"):
        values_of({"type": "string", "pattern": opens + "["}, {}, strict=False)


def test_references_that_branch_at_every_level_are_given_up() -> None:
    count = 200
    definitions = {
        f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}, {"$ref": f"#/$defs/d{i + 1}"}]}
        for i in range(count)
    }
    root = {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{count}": {"type": "string"}}}
    with pytest.raises(SchemaError, match="more than 1000 schemas"):
        values_of(root, root, strict=True)


@pytest.mark.parametrize(
    "schema", [{"type": "string", "format": []}, {"$ref": "#/anyOf/" + "9" * 5000}]
)
def test_odd_values_are_told_and_break_nothing(schema: Any) -> None:
    with pytest.raises(SchemaError):
        values_of(schema, {"anyOf": [{"type": "string"}]}, strict=True)

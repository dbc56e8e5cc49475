from __future__ import annotations

from typing import Any

import pytest

from api.errors import ApiError
from api.grammar.formats import (
    AnswerFormat,
    JsonSchemaParam,
    ResponseFormat,
    StructuredOutputs,
    only_one,
    read_named,
    read_response_format,
    read_structured_outputs,
)

SCHEMA = {"type": "object", "properties": {"a": {}}}


def test_response_format() -> None:
    assert read_response_format(None) is None
    assert read_response_format(ResponseFormat("text")) is None
    any_object = read_response_format(ResponseFormat("json_object"))
    assert any_object == AnswerFormat("json_schema", {"type": "object"}, "response_format")
    param = "response_format.json_schema.schema"
    for strict in (True, False, None):
        wrapper = JsonSchemaParam("x", schema=SCHEMA, strict=strict)
        read = read_response_format(ResponseFormat("json_schema", wrapper))
        # What is not held to the letter is at least shown.
        assert read == AnswerFormat("json_schema", SCHEMA, param, bool(strict), not strict)


@pytest.mark.parametrize(
    ("format_", "param"),
    [
        (ResponseFormat("json_schema"), "response_format.json_schema"),
        (ResponseFormat("json_schema", JsonSchemaParam("x")), "response_format.json_schema.schema"),
        (ResponseFormat("structural_tag"), "response_format"),
    ],
)
def test_a_response_format_without_schema_is_refused(format_: ResponseFormat, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_response_format(format_)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    ("fields", "kind", "value"),
    [
        ({"guided_json": SCHEMA}, "json_schema", SCHEMA),
        ({"guided_json": '{"type": "object", "properties": {"a": {}}}'}, "json_schema", SCHEMA),
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"regex": "a+"}, "regex", "a+"),
        ({"guided_choice": ["a", "b"]}, "choice", ["a", "b"]),
        ({"guided_grammar": "start: x"}, "grammar", "start: x"),
        ({"ebnf": "root ::= x"}, "grammar", "root ::= x"),
    ],
)
def test_the_extensions(fields: dict[str, Any], kind: Any, value: Any) -> None:
    (param,) = fields
    assert read_named(fields) == [AnswerFormat(kind, value, param)]


def test_structured_outputs() -> None:
    assert read_structured_outputs(None) == read_structured_outputs(StructuredOutputs()) == []
    outputs = StructuredOutputs(json=SCHEMA, regex="a", choice=["x"], grammar="g", json_object=True)
    found = read_structured_outputs(outputs)
    names = ["json", "regex", "choice", "grammar", "json_object"]
    assert [format_.param for format_ in found] == [f"structured_outputs.{name}" for name in names]
    kinds = ["json_schema", "regex", "choice", "grammar", "json_schema"]
    assert [format_.kind for format_ in found] == kinds
    assert found[0].value == SCHEMA and found[4].value == {"type": "object"}
    assert read_structured_outputs(StructuredOutputs(json_object=False)) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_json": "{"},
        {"guided_json": "[" * 100_000},
        {"guided_regex": ""},
        {"guided_regex": "a" * 4097},
        {"ebnf": "a" * 16385},
        {"guided_choice": []},
        {"guided_choice": ["a", ""]},
        {"guided_choice": ["a"] * 1001},
        {"guided_choice": ["a" * 40_000, "b" * 40_000]},
    ],
)
def test_what_is_too_long_or_malformed_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        read_named(fields)
    assert caught.value.status == 400 and (caught.value.param or "") in fields


def test_two_formats_contradict_each_other() -> None:
    first, second = AnswerFormat("regex", "a", "regex"), AnswerFormat("regex", "a", "guided_regex")
    assert only_one([]) is None and only_one([first]) is first
    with pytest.raises(ApiError) as caught:
        only_one([first, second])
    assert caught.value.param == "guided_regex"

"""Schemas, patterns and grammars that are known to bring constrained decoding down.

Each is refused by its name before the engine hears of it, or it does no harm: then the engine
compiles it, too. Sources of the shapes: published advisories about other servers, and what took
other grammar engines seconds, gigabytes or the process.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from api.errors import ApiError
from engine.grammar import GrammarError
from tests.api.grammar.grammars import tools
from tests.api.scripted_engine import Scripted, body


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def tripled(levels: int) -> dict[str, Any]:
    """A schema that holds three of itself, and so on."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"anyOf": [schema, {"type": "array", "items": schema}, {"not": schema}]}
    return schema


def chained(levels: int) -> dict[str, Any]:
    """References of which each leads to two of the next."""
    definitions: dict[str, Any] = {
        f"d{number}": {
            "type": "object",
            "properties": {name: {"$ref": f"#/$defs/d{number + 1}"} for name in "xy"},
        }
        for number in range(levels)
    }
    return {"$defs": {**definitions, f"d{levels}": {"type": "string"}}, "$ref": "#/$defs/d0"}


REFUSED: dict[str, Any] = {
    "40 levels": nested(40),
    "100 levels": nested(100),
    "300 levels": nested(300),
    "200 kB of three copies a level": tripled(8),
    "ten thousand values": {"enum": [f"value {number}" for number in range(10_000)]},
    "a reference to another host": {"$ref": "http://127.0.0.1/schema.json"},
    "a reference to a file": {"$ref": "file:///etc/passwd"},
    "a reference to nowhere": {"$ref": "#/$defs/nothing"},
    "an unknown type": {"type": "no such type"},
    "a type that is no name": {"type": {"a": "string"}},
    "an unfinished pattern": {"type": "string", "pattern": "("},
    "a pattern of 50,000 brackets": {"type": "string", "pattern": "(" * 50_000},
    "a pattern of 4,000 brackets": {
        "type": "string",
        "pattern": "(" * 2000 + "a" + ")" * 2000,
    },
    "a pattern that looks ahead": {"type": "string", "pattern": "(?=a)b"},
    "a pattern that is no text": {"type": "string", "pattern": ["a"]},
    "a multiple of almost nothing": {"type": "number", "multipleOf": 1e-300},
    "a range beyond all numbers": {"type": "integer", "minimum": -(10**300)},
    "no value at all": {"enum": []},
}
HARMLESS: dict[str, Any] = {
    "a text of 100,000 characters": {"type": "string", "maxLength": 100_000},
    "a list of a million": {"type": "array", "items": {"type": "integer"}, "maxItems": 10**6},
    "a list of 10^18": {"type": "array", "items": {"type": "integer"}, "maxItems": 10**18},
    "a thousand times a thousand": {"type": "string", "pattern": "([a-z]{1,1000}){1,1000}"},
    "a pattern others backtrack in": {"type": "string", "pattern": "^(a*)*b$"},
    "22 levels": nested(22),
    "itself": {"$ref": "#"},
    "references that double 15 times": chained(15),
}


def calls_of(schema: Any) -> dict[str, Any]:
    """A request for a call whose one argument follows the schema."""
    parameters = {"type": "object", "properties": {"v": schema}, "required": ["v"]}
    parameters |= {"additionalProperties": False}
    if isinstance(schema, dict) and "$defs" in schema:
        parameters["$defs"] = schema["$defs"]
    function = {"name": "f", "parameters": parameters, "strict": True}
    return {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}


def format_of(schema: Any) -> dict[str, Any]:
    """A request for an answer that follows the schema."""
    wrapper = {"name": "n", "schema": schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": wrapper}}


async def start(scripted: Scripted, fields: dict[str, Any]) -> None:
    async with await scripted.service.start(body(**fields)):
        pass


@pytest.mark.parametrize(
    ("fields_of", "param"),
    [
        (calls_of, "tools[0].function.parameters"),
        (format_of, "response_format.json_schema.schema"),
        (lambda schema: {"guided_json": schema}, "guided_json"),
        (lambda schema: {"structured_outputs": {"json": schema}}, "structured_outputs.json"),
    ],
)
@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name(scripted: Scripted, name: str, fields_of: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        asyncio.run(start(scripted, fields_of(REFUSED[name])))
    error = caught.value
    assert error.status == 400 and len(error.message) < 500
    if error.code == "invalid_grammar":
        assert error.param == param
    else:
        # Deep or long enough, and the body or the prompt is refused before.
        assert error.code in ("invalid_json", "context_length_exceeded")
        assert param.startswith(error.param or "nothing") or error.param == "messages"
    assert not scripted.engine.submits


@pytest.mark.parametrize("fields_of", [calls_of, format_of])
@pytest.mark.parametrize("name", HARMLESS)
def test_or_it_does_no_harm(scripted: Scripted, name: str, fields_of: Any) -> None:
    fields = fields_of(HARMLESS[name])
    asyncio.run(start(scripted, fields))
    (submit,) = scripted.engine.submits
    assert submit.grammar is not None
    compiler, _ = tools()
    try:
        compiler.compile(submit.grammar)
    except GrammarError as error:
        assert str(error), "refused by the engine, with the reason"


def test_what_no_grammar_can_hold_leaves_a_loose_function_free(scripted: Scripted) -> None:
    """A schema that is not strict is advice: the call is demanded, its arguments are free."""
    for name, schema in REFUSED.items():
        parameters = {"type": "object", "properties": {"v": schema}}
        function = {"name": "f", "parameters": parameters}
        request = {"tools": [{"type": "function", "function": function}]}
        try:
            asyncio.run(start(scripted, request | {"tool_choice": "required"}))
        except ApiError as error:
            # Too long for the window, or too deep for a body.
            assert error.code in ("context_length_exceeded", "invalid_json"), name
    assert scripted.engine.submits
    assert all(submit.grammar is not None for submit in scripted.engine.submits)


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_regex": "(" * 50_000},
        {"guided_regex": "(" * 2000 + "a" + ")" * 2000},
        {"guided_regex": r"(a)\1"},
        {"regex": "["},
        {"guided_grammar": "root ::= " + "(" * 7000},
        {"ebnf": "root ::= root2\n" * 1000},
        {"guided_choice": ["a"] * 1001},
    ],
)
def test_texts_are_refused_by_name(scripted: Scripted, fields: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        asyncio.run(start(scripted, fields))
    assert (caught.value.status, caught.value.param) == (400, next(iter(fields)))
    assert len(caught.value.message) < 500 and not scripted.engine.submits

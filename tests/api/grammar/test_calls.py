from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.chat.encoding import Encoder
from api.chat.events import ToolArguments, ToolCallStart
from api.chat.json_text import parse_json, to_json
from api.chat.markers import EOS
from api.chat.messages import Message, ToolCall
from api.chat.parser import OutputParser
from api.errors import ApiError
from api.grammar.calls import PARAMETER_NAME
from api.grammar.schema import SchemaError
from tests.api.grammar.grammars import accepts, block, call, forced, strict

PLACE = strict(
    "place",
    "name",
    "size",
    name={"type": "string"},
    size={"type": "integer"},
    kind={"enum": ["lake", "city", None]},
    open={"type": ["boolean", "string"]},
)


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "Genève", "size": 3},
        {"name": "", "size": -1, "kind": "lake"},
        {"name": 'a </b> "x"\n\n<｜x', "size": 0, "kind": None, "open": True},
        {"name": "x", "size": 10**12, "open": "no"},
    ],
)
def test_calls_that_follow_the_schema_are_accepted(arguments: dict[str, Any]) -> None:
    assert accepts(forced(PLACE), block(call("place", arguments)))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"name": "x"},
        {"size": 3},
        {"size": 3, "name": "x"},  # not in order
        {"name": "x", "size": 3, "more": 1},
        {"name": "x", "size": 3.5},
        {"name": "x", "size": "3"},
        {"name": 3, "size": 3},
        {"name": "x", "size": 3, "kind": "sea"},
        {"name": "x", "size": 3, "open": None},
    ],
)
def test_calls_that_do_not_are_refused(arguments: dict[str, Any]) -> None:
    assert not accepts(forced(PLACE), block(call("place", arguments)))


def test_the_separators_are_the_trained_ones(encoder: Encoder) -> None:
    arguments = {"name": "x", "size": 3, "open": True}
    calls = (
        ToolCall("a", "place", to_json(arguments)),
        ToolCall("b", "stop", "{}"),
        ToolCall("c", "stop", "{}"),
    )
    message = Message("assistant", "", tool_calls=calls)
    segments = encoder.render([Message("user", "Hi"), message], thinking=False)
    text = "".join(segment.text for segment in segments)
    answer = text[text.index("\n\n<") :].removesuffix(EOS)
    grammar = forced(PLACE, strict("stop"))
    assert accepts(grammar, answer)
    assert not accepts(grammar, answer.replace("\n\n<", "\n<", 1))
    assert not accepts(grammar, answer.replace("invoke>\n<", "invoke>\n\n<", 1))
    assert not accepts(grammar, answer.replace("invoke>\n</", "invoke></"))
    assert not accepts(grammar, answer + "\n")
    assert not accepts(grammar, "So: " + answer)


def test_one_call_is_one_call() -> None:
    stop = strict("stop")
    once, twice = block(call("stop", {})), block(call("stop", {}), call("stop", {}))
    assert accepts(forced(stop, one_call=True), once)
    assert not accepts(forced(stop, one_call=True), twice)
    assert accepts(forced(stop), once) and accepts(forced(stop), twice)
    assert not accepts(forced(stop), block())


def test_the_marker_spelled_out_is_no_marker() -> None:
    """Its token alone ends a value; its characters are text."""
    text = block(call("place", {"name": "x", "size": 3}))
    inside = text.replace(">x</", ">x</｜DSML|parameter></")
    assert accepts(forced(PLACE), inside)


def test_a_function_without_parameters_takes_none() -> None:
    for parameters in ({}, {"type": "object", "properties": {}}, {"type": "object"}):
        grammar = forced({"name": "f", "parameters": parameters})
        assert accepts(grammar, block(call("f", {})))
        assert not accepts(grammar, block(call("f", {"a": 1})))
    assert accepts(forced({"name": "f"}), block(call("f", {})))


def test_a_function_of_anything_takes_anything() -> None:
    grammar = forced({"name": "f", "parameters": {"type": "object", "additionalProperties": True}})
    for arguments in ({}, {"a": 1, "b c": "</x>", "d": {"e": [None, "f"]}}):
        assert accepts(grammar, block(call("f", arguments)))


def test_a_schema_of_no_use_leaves_the_arguments_free_unless_strict() -> None:
    parameters = {"type": "object", "properties": {"a": {"$ref": "http://example.org/a"}}}
    assert accepts(forced({"name": "f", "parameters": parameters}), block(call("f", {"b": 1})))
    with pytest.raises(ApiError) as caught:
        forced({"name": "g"}, {"name": "f", "parameters": parameters, "strict": True})
    error = caught.value
    assert (error.status, error.code) == (400, "invalid_grammar")
    assert error.param == "tools[1].function.parameters"
    assert "http://example.org/a" in error.message


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "array"},
        {"type": "object", "properties": {'a"b': {"type": "string"}}},
        {"type": "object", "properties": {"a": {"not": {"type": "string"}}}},
        {"type": "object", "properties": {"a": False}},
        {"type": "object", "properties": {"a": {"enum": []}}},
        {"type": "object", "anyOf": [{"required": ["a"]}], "properties": {"a": {}}},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}},
        {"type": "object", "properties": {"a": {"type": "string", "format": "colour"}}},
        {"type": "object", "properties": {}, "required": 3},
    ],
)
def test_strict_parameters_that_cannot_be_held_to_are_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        forced({"name": "f", "strict": True, "parameters": parameters})
    assert caught.value.param == "tools[0].function.parameters"


def test_parameters_may_refer_to_definitions() -> None:
    node = {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
        "required": ["next"],
        "additionalProperties": False,
    }
    function = strict("f", "a", a={"$ref": "#/$defs/node"})
    function["parameters"]["$defs"] = {"node": node}
    assert accepts(forced(function), block(call("f", {"a": {"next": {"next": None}}})))
    assert not accepts(forced(function), block(call("f", {"a": {"next": {}}})))


SCALARS = {
    # In JSON, llguidance has the delete character escaped, as it has those below the space.
    "string": st.text(st.characters(codec="utf-8", exclude_characters="｜\x7f"), max_size=8),
    "integer": st.integers(-(10**9), 10**9),
    "boolean": st.booleans(),
    "null": st.none(),
}


@st.composite
def functions_and_arguments(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any], set[str]]:
    """(a strict function, arguments that follow its schema, names that may be left out)."""
    names = draw(st.lists(st.from_regex(r"[a-z_]{1,6}", fullmatch=True), max_size=5, unique=True))
    properties, arguments, required = {}, {}, []
    for name in names:
        kind = draw(st.sampled_from(sorted(SCALARS)))
        as_list = draw(st.booleans())
        value = SCALARS[kind]
        properties[name] = {"type": "array", "items": {"type": kind}} if as_list else {"type": kind}
        if draw(st.booleans()):
            required.append(name)
        if name in required or draw(st.booleans()):
            arguments[name] = draw(st.lists(value, max_size=3) if as_list else value)
    function = strict("f", *required, **properties)
    function["parameters"]["additionalProperties"] = False
    return function, arguments, set(arguments) - set(required)


@settings(max_examples=60, deadline=None)
@given(functions_and_arguments(), st.data())
def test_what_a_schema_allows_and_no_more(drawn: Any, data: st.DataObject) -> None:
    function, arguments, optional = drawn
    grammar = forced(function)
    text = block(call("f", arguments))
    assert accepts(grammar, text)
    parser = OutputParser(False, True, [function])
    events = [*parser.feed(text), *parser.finish("stop")]
    assert [e.name for e in events if isinstance(e, ToolCallStart)] == ["f"]
    written = "".join(e.text for e in events if isinstance(e, ToolArguments))
    assert parse_json(written) == arguments
    if arguments:
        name = data.draw(st.sampled_from(sorted(arguments)))
        without = {key: value for key, value in arguments.items() if key != name}
        assert accepts(grammar, block(call("f", without))) == (name in optional)
        assert not accepts(grammar, block(call("f", arguments | {name: {"no": "such"}})))


def test_names_that_fit_a_tag() -> None:
    assert PARAMETER_NAME.fullmatch("a b-c_Ж")
    assert not any(map(PARAMETER_NAME.fullmatch, ["", 'a"', "a<", "a\nb", "a" * 257]))
    assert issubclass(SchemaError, ValueError)

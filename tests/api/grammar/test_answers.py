from __future__ import annotations

import asyncio
from typing import Any

import pytest

from api.errors import ApiError
from api.grammar.answers import AnswerDemand, Grammars
from api.grammar.formats import AnswerFormat, any_object
from api.tools import CallDemand
from tests.api.grammar.grammars import GRAMMARS, IDS, accepts, block, call, strict

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
NUMBER["additionalProperties"] = False
FORMAT = AnswerFormat("json_schema", NUMBER, "response_format")


def calls(required: bool = False, restricted: bool = True) -> CallDemand:
    return CallDemand([strict("f")], ["tools[0]"], required, False, restricted)


def test_a_demand_is_made_of_what_matters() -> None:
    forced, free, strict_ = calls(True), calls(restricted=False), calls()
    assert AnswerDemand.of(None, None) is None
    assert AnswerDemand.of(free, None) is None
    assert AnswerDemand.of(strict_, None) == AnswerDemand(strict_)
    assert AnswerDemand.of(None, FORMAT) == AnswerDemand(None, FORMAT)
    assert AnswerDemand.of(free, FORMAT) == AnswerDemand(free, FORMAT)
    assert AnswerDemand.of(forced, FORMAT) == AnswerDemand(forced), "a call is not text"


@pytest.mark.parametrize("in_reasoning", [False, True])
def test_where_a_grammar_starts(in_reasoning: bool) -> None:
    after = IDS["</think>"] if in_reasoning else None
    for demand in (
        AnswerDemand(calls(True)),
        AnswerDemand(None, FORMAT),
        AnswerDemand(calls(), FORMAT),
    ):
        grammar = GRAMMARS.make(demand, in_reasoning)
        assert (grammar.after_token, grammar.required) == (after, True)
    grammar = GRAMMARS.make(AnswerDemand(calls()), in_reasoning)
    assert (grammar.after_token, grammar.required) == (IDS["｜DSML｜"], False)
    assert accepts(grammar, block(call("f", {})).removeprefix("\n\n<｜DSML｜"))


def test_a_call_or_the_format_is_one_of_both() -> None:
    grammar = GRAMMARS.make(AnswerDemand(calls(), FORMAT), False)
    assert accepts(grammar, block(call("f", {}))) and accepts(grammar, '{"n": 3}')
    for text in ("", "{}", '{"n": 3}' + block(call("f", {})), "Well", block(call("g", {}))):
        assert not accepts(grammar, text)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ('{"a": [1, 2]}', True),
        ('{"a":[1,2]}', True),
        ('{\n  "a": [\n    1,\n    2\n  ]\n}', True),
        ("{}", True),
        ("[]", False),
        ('{"a":  1}', False),
        ('{\n\n"a": 1}', False),
        (' {"a": 1}', False),
        ('{"a": 1} ', False),
        ('{"a": "\\ud800"}', False),
        ('{"a": "\\n\\u001b"}', True),
    ],
)
def test_white_space_in_json_is_bounded(text: str, right: bool) -> None:
    assert accepts(GRAMMARS.make(AnswerDemand(None, any_object("p")), False), text) == right


@pytest.mark.parametrize(
    ("kind", "value", "good", "bad"),
    [
        ("regex", r"a/b\d", "a/b7", "a/b"),
        ("choice", ["a", 'b"\n'], 'b"\n', "b"),
        ("grammar", 'root ::= "x" | "y" root', "yyx", "y"),
        ("grammar", 'start: "x"+', "xx", "y"),
        ("grammar", 'start: %json {"type": "integer"}', "12", "x"),
    ],
)
def test_the_other_formats(kind: Any, value: Any, good: str, bad: str) -> None:
    grammar = GRAMMARS.make(AnswerDemand(None, AnswerFormat(kind, value, "p")), False)
    assert accepts(grammar, good) and not accepts(grammar, bad)


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("json_schema", deep(600)),
        ("json_schema", {"enum": [f"value{i}" for i in range(10_000)]}),
        ("json_schema", {"$ref": "http://example.org/schema"}),
        ("json_schema", {"type": "no such type"}),
        ("json_schema", {"type": "string", "pattern": "(?=a)"}),
        ("json_schema", {"type": "array", "uniqueItems": True}),
        ("json_schema", {"enum": []}),
        ("json_schema", 7),
        ("json_schema", {"pattern": {"a": "x" * 88 + "\U000f6e13" * 9}}),
        (
            "json_schema",
            {
                "allOf": [
                    {"anyOf": [{"properties": {f"{i}{j}": {"type": "string"}}} for j in range(4)]}
                    for i in range(12)
                ]
            },
        ),
        ("regex", "(" * 2000 + "a" + ")" * 2000),
        ("regex", "(a"),
        ("regex", r"\bfoo"),
        ("grammar", "root ::= " + "(" * 7000),
        ("grammar", "no grammar at all"),
        ("grammar", 'start: %json {"a": ' * 3000),
        ("choice", ["a\ud800"]),
    ],
)
def test_hostile_formats_are_refused_by_name(kind: Any, value: Any) -> None:
    with pytest.raises(ApiError) as caught:
        GRAMMARS.make(AnswerDemand(None, AnswerFormat(kind, value, "the.field")), False)
    error = caught.value
    assert (error.status, error.code, error.param) == (400, "invalid_grammar", "the.field")
    assert len(error.message) < 500


def test_references_that_multiply_are_cut_off() -> None:
    shared = {"enum": [f"value number {i}" for i in range(1500)]}
    function = strict("f", **{f"p{i}": {"$ref": "#/$defs/e", "maxLength": 9} for i in range(500)})
    function["parameters"]["$defs"] = {"e": shared}
    with pytest.raises(ApiError, match="too large when references are followed"):
        GRAMMARS.make(AnswerDemand(CallDemand([function], ["t"], True, False, True)), False)


def test_grammars_are_kept_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.grammar.answers.CACHED_BYTES", 10_000)

    async def run() -> None:
        grammars = Grammars(IDS["</think>"], IDS["｜DSML｜"])
        demand = AnswerDemand(None, FORMAT)
        first = await grammars.grammar(demand, in_reasoning=False)
        assert await grammars.grammar(AnswerDemand(None, FORMAT), in_reasoning=False) is first
        thinking = await grammars.grammar(demand, in_reasoning=True)
        assert thinking.after_token == IDS["</think>"]
        for i in range(8):
            text = f"{i:03d}" + "x" * 900
            await grammars.grammar(
                AnswerDemand(None, AnswerFormat("choice", [text], "p")), in_reasoning=False
            )
            assert grammars._known_bytes <= 10_000
        assert await grammars.grammar(demand, in_reasoning=False) is not first

    asyncio.run(run())

"""Whatever a client calls a schema: a grammar, or a refusal that names the field; never a crash.

FUZZ_MUTATIONS is the number of examples, as for the other fuzz tests.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from api.errors import ApiError
from api.grammar.answers import AnswerDemand
from api.grammar.formats import AnswerFormat
from api.tools import CallDemand
from engine.grammar import GrammarError
from tests.api.grammar.grammars import GRAMMARS, tools

EXAMPLES = int(os.environ.get("FUZZ_MUTATIONS", "100"))

KEYWORDS = (
    *("type", "properties", "required", "additionalProperties", "items", "prefixItems", "enum"),
    *("const", "anyOf", "oneOf", "allOf", "not", "$ref", "$defs", "definitions", "$def", "$id"),
    *("pattern", "format", "minLength", "maxLength", "minimum", "maximum", "multipleOf"),
    *("minItems", "maxItems", "title", "default", "$schema", "x-guidance", "patternProperties"),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.sampled_from(["string", "object", "integer", "array", "null", "number", "boolean"]),
    st.sampled_from(
        ["#", "#/$defs/a", "#/properties/a", "#/a", "http://x/y", "^a$", "a|b", "(", "date"]
    ),
)


def schemas() -> st.SearchStrategy[Any]:
    keys = st.sampled_from(KEYWORDS) | st.sampled_from(["a", "b", 'c"', ""])
    return st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=5),
        max_leaves=12,
    )


def made(demand: AnswerDemand, params: set[str]) -> None:
    """Makes the grammar, in the API and in the engine, or checks how it is refused."""
    try:
        grammar = GRAMMARS.make(demand, in_reasoning=False)
    except ApiError as error:
        assert error.status == 400 and error.param in params
        return
    compiler, _ = tools()
    try:
        compiler.compile(grammar)
    except GrammarError as error:
        assert str(error)


@settings(max_examples=EXAMPLES, deadline=None)
@given(schemas(), st.booleans())
def test_any_schema_of_an_answer(schema: Any, strict: bool) -> None:
    made(AnswerDemand(None, AnswerFormat("json_schema", schema, "p", strict)), {"p"})


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYWORDS), schemas(), max_size=5), st.booleans())
def test_any_parameters_of_a_function(parameters: dict[str, Any], strict: bool) -> None:
    function = {"name": "f", "parameters": parameters, "strict": strict}
    made(AnswerDemand(CallDemand([function], ["t"], True, False, True)), {"t"})


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.text(max_size=40), st.sampled_from(["regex", "grammar"]))
def test_any_text_of_a_regex_or_grammar(text: str, kind: Any) -> None:
    made(AnswerDemand(None, AnswerFormat(kind, text or "a", "p")), {"p"})


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.text("ab|()[]{}?*+^$\\.-/<>&~\"'%:0123\n ", max_size=25))
def test_any_regex(text: str) -> None:
    made(AnswerDemand(None, AnswerFormat("regex", text or "a", "p")), {"p"})
    function = {"name": "f", "strict": True, "parameters": {"properties": {"a": {"pattern": text}}}}
    made(AnswerDemand(CallDemand([function], ["t"], True, False, True)), {"t"})

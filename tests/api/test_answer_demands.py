"""What requests in every dialect make of their wishes for the answer, up to the engine."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from api.anthropic.request import read_messages_request
from api.chat.encoding import Encoder
from api.config import ChatConfig
from api.errors import ApiError
from api.service import ChatService
from engine.client import GenerationDefaults
from engine.messages import ReasoningBudget, Refused, Submit
from tests.api.scripted_engine import MODEL, Scripted

FUNCTION: dict[str, Any] = {
    "name": "pick",
    "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
}
TOOL = {"type": "function", "function": FUNCTION}
STRICT = {"type": "function", "function": {**FUNCTION, "name": "exact", "strict": True}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}}
CALL = (
    '\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="pick">\n'
    '<｜DSML｜parameter name="n" string="false">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
    "</｜DSML｜function_calls>"
)


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def submitted(scripted: Scripted, **fields: Any) -> Submit:
    asyncio.run(scripted.complete(**fields))
    return scripted.engine.submits[-1]


def refused(scripted: Scripted, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        asyncio.run(scripted.complete(**fields))
    assert not scripted.engine.submits
    return caught.value


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": [TOOL]},
        {"tools": [TOOL, STRICT], "tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"tools": [TOOL], "parallel_tool_calls": False},
    ],
)
def test_who_demands_nothing_gets_no_grammar(scripted: Scripted, fields: dict[str, Any]) -> None:
    assert submitted(scripted, **fields).grammar is None


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [TOOL], "tool_choice": "required"},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "pick"}}},
        {"response_format": FORMAT},
        {"response_format": {"type": "json_object"}, "tools": [TOOL]},
        {"guided_choice": ["a"]},
    ],
)
def test_a_demand_holds_behind_the_reasoning(
    scripted: Scripted, thinking: bool, fields: dict[str, Any]
) -> None:
    mode = {"thinking": {"type": "enabled"}} if thinking else {}
    grammar = submitted(scripted, **fields, **mode).grammar
    assert grammar is not None and grammar.required
    expected = scripted.encoder.think_end_token_id if thinking else None
    assert grammar.after_token == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [TOOL, STRICT]},
        {
            "tools": [TOOL, STRICT],
            "tool_choice": {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "function": {"name": "pick"}}],
            },
        },
    ],
)
def test_optional_calls_are_held_to_it_from_their_first_tag(
    scripted: Scripted, fields: dict[str, Any]
) -> None:
    grammar = submitted(scripted, **fields).grammar
    assert grammar is not None and not grammar.required
    assert grammar.after_token == scripted.encoder.dsml_token_id
    assert "pick" in grammar.source
    assert ("exact" in grammar.source) == ("tool_choice" not in fields)


def test_allowed_tools_leave_the_prompt_as_it_is(scripted: Scripted) -> None:
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [
        {"type": "function", "function": {"name": "pick"}}]}}  # fmt: skip
    free = submitted(scripted, tools=[TOOL, STRICT])
    held = submitted(scripted, tools=[TOOL, STRICT], tool_choice=choice)
    assert free.token_ids == held.token_ids


def test_a_forced_call_is_parsed(scripted: Scripted) -> None:
    scripted.replies = [CALL]
    answer = asyncio.run(scripted.complete(tools=[TOOL], tool_choice="required"))
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    assert choice["message"]["tool_calls"][0]["function"] == {
        "name": "pick",
        "arguments": '{"n": 3}',
    }


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}},
         "tool_choice.function.name"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": FORMAT, "guided_regex": "a"}, "guided_regex"),
        ({"regex": "(a"}, "regex"),
        ({"guided_json": deep(400)}, "guided_json"),
        ({"guided_json": {"type": "integer", "maximum": 10**40, "minimum": 10**41}}, "guided_json"),
        ({"guided_json": {"type": "nothing"}}, "guided_json"),
        ({"structured_outputs": {"grammar": "start: y"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"choice": "a"}}, "structured_outputs.choice"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [5, 10**6]}, "allowed_token_ids[1]"),
        ({"bad_words": [""]}, "bad_words[0]"),
        ({"bad_words": ["a"] * 101}, "bad_words"),
        ({"thinking_token_budget": -1}, "thinking_token_budget"),
        ({"thinking": {"type": "enabled", "budget_tokens": -1}}, "thinking.budget_tokens"),
        (
            {"response_format": {**FORMAT, "json_schema": {"schema": {"$ref": "x:y"}}}},
            "response_format.json_schema.schema",
        ),
        (
            {"tools": [{"type": "function", "function": {
                "name": "f", "strict": True, "parameters": {"type": "array"}}}]},
            "tools[0].function.parameters",
        ),
    ],
)  # fmt: skip
def test_demands_that_cannot_be_met_are_refused_before_the_engine_hears_of_them(
    scripted: Scripted, fields: dict[str, Any], param: str
) -> None:
    error = refused(scripted, **fields)
    assert (error.status, error.param) == (400, param)


def test_an_answer_that_has_begun_cannot_be_held_to_a_form(scripted: Scripted) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    messages.append({"role": "assistant", "content": "{", "prefix": True})  # type: ignore[dict-item]
    error = refused(scripted, messages=messages, response_format={"type": "json_object"})
    assert (error.status, error.param) == (400, "response_format")


def test_an_engine_that_refuses_the_grammar_names_the_field(scripted: Scripted) -> None:
    scripted.engine.refusal = Refused("x", 400, "invalid_grammar", "too large", "regex")
    error = refused(scripted, regex="a+")
    assert (error.status, error.code, error.param) == (400, "invalid_grammar", "regex")


def test_a_loose_schema_is_shown_in_the_prompt(scripted: Scripted) -> None:
    def text(**fields: Any) -> str:
        ids = submitted(scripted, **fields).token_ids
        decoded: str = scripted.encoder.tokenizer.decode(ids)
        return decoded

    strict = {**FORMAT, "json_schema": {**FORMAT["json_schema"], "strict": True}}
    assert '{"type": "integer"}' in text(response_format=FORMAT)
    assert '{"type": "integer"}' not in text(response_format=strict)
    assert text(response_format=strict) == text()


@pytest.mark.parametrize(
    ("fields", "cap", "tokens"),
    [
        ({}, None, None),
        ({"thinking_token_budget": 5}, None, 5),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, None, 0),
        ({}, 9, 9),
        ({"thinking_token_budget": 5}, 9, 5),
        ({"thinking_token_budget": 50}, 9, 9),
    ],
)
def test_the_smallest_budget_counts(
    encoder: Encoder,
    scripted: Scripted,
    fields: dict[str, Any],
    cap: int | None,
    tokens: int | None,
) -> None:
    config = ChatConfig(max_reasoning_tokens=cap)
    scripted.service = ChatService(
        scripted.engine, encoder, (MODEL,), GenerationDefaults(), config  # type: ignore[arg-type]
    )  # fmt: skip
    fields = {"chat_template_kwargs": {"thinking": True}, **fields}
    budget = submitted(scripted, **fields).sampling.reasoning
    end = encoder.think_end_token_id
    assert budget == (None if tokens is None else ReasoningBudget(tokens, end))
    calls = submitted(scripted, tools=[TOOL], **fields).sampling.reasoning
    assert calls is None or calls.also_ended_by == (encoder.dsml_token_id,)
    # Without reasoning there is nothing to limit.
    assert submitted(scripted).sampling.reasoning is None


def test_tokens_and_words(scripted: Scripted) -> None:
    sampling = submitted(scripted, allowed_token_ids=[9, 8, 9], bad_words=["ab"]).sampling
    assert sampling.allowed_token_ids == (9, 8)
    encode = scripted.encoder.encode_text
    assert sampling.bad_words == (tuple(encode("ab")), tuple(encode(" ab")))


@pytest.mark.parametrize(
    ("choice", "required", "functions"),
    [
        ({"type": "any"}, True, 2),
        ({"type": "tool", "name": "exact"}, True, 1),
        ({"type": "auto"}, False, 2),
        (None, False, 2),
    ],
)
def test_anthropic_choices_mean_the_same(
    scripted: Scripted, choice: Any, required: bool, functions: int
) -> None:
    schema = FUNCTION["parameters"]
    tools: list[dict[str, Any]] = [{"name": "pick", "input_schema": schema}]
    tools.append({"name": "exact", "input_schema": schema, "strict": True})
    fields: dict[str, Any] = {"max_tokens": 9, "tools": tools, "tool_choice": choice}
    fields["thinking"] = {"type": "enabled", "budget_tokens": 7}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], **fields}
    request = read_messages_request(msgspec.json.encode(body), scripted.service.facts)
    assert request.answer is not None and request.answer.calls is not None
    assert request.answer.calls.required == required
    assert len(request.answer.calls.functions) == functions
    assert request.max_reasoning_tokens == 7

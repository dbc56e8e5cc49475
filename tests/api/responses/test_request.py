"""api.responses.request: the same chat completion in other words, and refusals in those words."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from api.chat_request import ChatRequest, read_chat_request
from api.errors import ApiError
from api.responses.request import ResponseRequest, as_sent, read_responses_request
from tests.api.scripted_engine import MODEL, Scripted

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"name": "get_weather", "description": "The weather", "parameters": PARAMETERS}
TOOL = {"type": "function", **FUNCTION}


def read(scripted: Scripted, **fields: Any) -> ResponseRequest:
    body = msgspec.json.encode({"model": MODEL, "input": "Hi", **fields})
    return read_responses_request(body, scripted.service.facts)


def chat(scripted: Scripted, **fields: Any) -> ChatRequest:
    messages = [{"role": "user", "content": "Hi"}]
    body = msgspec.json.encode({"model": MODEL, "messages": messages, **fields})
    return read_chat_request(body, scripted.service.facts)


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({}, {}),
        ({"max_output_tokens": 7}, {"max_completion_tokens": 7}),
        (
            {"temperature": 0.5, "top_p": 0.9, "seed": 3, "top_k": 5, "stop": "x"},
            {"temperature": 0.5, "top_p": 0.9, "seed": 3, "top_k": 5, "stop": "x"},
        ),
        ({"reasoning": {"effort": "high", "summary": "auto"}}, {"reasoning_effort": "high"}),
        ({"reasoning": {"effort": None}}, {}),
        ({"thinking": {"type": "enabled"}}, {"thinking": {"type": "enabled"}}),
        (
            {"tools": [{**TOOL, "strict": None}]},
            {"tools": [{"type": "function", "function": FUNCTION}]},
        ),
        (
            {"tools": [TOOL], "parallel_tool_calls": False},
            {
                "tools": [{"type": "function", "function": FUNCTION}],
                "parallel_tool_calls": False,
            },
        ),
        (
            {"tools": [TOOL], "tool_choice": "none"},
            {"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "none"},
        ),
        (
            {"top_logprobs": 2, "include": ["message.output_text.logprobs"]},
            {"logprobs": True, "top_logprobs": 2},
        ),
        ({"text": {"format": {"type": "text"}, "verbosity": "low"}}, {}),
        (
            {"user_id": "me", "cache_salt": "s", "priority": 2},
            {"user_id": "me", "cache_salt": "s", "priority": 2},
        ),
        *(
            (extension, extension)
            for extension in (
                {"missing_reasoning": "error"},
                {"context_management": {"strategy": "summary", "max_resets": 2}},
                {"thinking_retention": "until_marker", "retention_marker": ["Out:"]},
                {"lenient_tool_calls": True},
                {"thinking_token_budget": 9},
            )
        ),
    ],
)
def test_it_asks_for_the_same_as_a_chat_completion(
    scripted: Scripted, fields: dict[str, Any], same: dict[str, Any]
) -> None:
    seed = {} if "seed" in fields else {"seed": 1}
    found, expected = read(scripted, **fields, **seed), chat(scripted, **same, **seed)
    assert found.sent.model == MODEL
    for name in set(ChatRequest.__struct_fields__) - {"message_paths", "include_usage"}:
        assert getattr(found, name) == getattr(expected, name), name


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        (
            {"tool_choice": {"type": "function", "name": "get_weather"}},
            {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
        ),
        ({"tool_choice": "required"}, {"tool_choice": "required"}),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "function", "name": "get_weather"}],
                }
            },
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {
                        "mode": "auto",
                        "tools": [{"type": "function", "function": {"name": "get_weather"}}],
                    },
                }
            },
        ),
        (
            {
                "text": {
                    "format": {
                        "type": "json_schema",
                        "name": "city",
                        "schema": PARAMETERS,
                        "strict": True,
                    }
                }
            },
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "city", "schema": PARAMETERS, "strict": True},
                }
            },
        ),
        (
            {"text": {"format": {"type": "json_object"}}},
            {"response_format": {"type": "json_object"}},
        ),
    ],
)
def test_what_the_answer_must_be_is_decided_in_one_place(
    scripted: Scripted, fields: dict[str, Any], same: dict[str, Any]
) -> None:
    """Honoured or refused: as the chat completion is."""
    tools = {"tools": [{"type": "function", "function": FUNCTION}]}
    try:
        expected: Any = chat(scripted, seed=1, **tools, **same)
    except ApiError as error:
        with pytest.raises(ApiError) as caught:
            read(scripted, tools=[TOOL], **fields)
        assert as_sent(caught.value.param) == as_sent(error.param)
        return
    found = read(scripted, seed=1, tools=[TOOL], **fields)
    assert (found.may_call, found.sampling) == (expected.may_call, expected.sampling)


def test_harmless_fields_are_let_through(scripted: Scripted) -> None:
    read(
        scripted,
        store=True,
        background=False,
        previous_response_id=None,
        metadata={"a": "b"},
        service_tier="auto",
        truncation="disabled",
        prompt_cache_key="k",
        include=["reasoning.encrypted_content"],
        stream_options={"include_obfuscation": False},
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"reasoning": {"context": "all_turns"}}, "reasoning.context"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"include": ["everything"]}, "include[0]"),
        ({"input": 4}, "input"),
        ({"input": [{"role": "user", "content": 4}]}, "input[0].content"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tools": [{**TOOL, "parameters": []}]}, "tools[0].parameters"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
        ({"temperature": 3}, "temperature"),
        ({"model": "gpt"}, "model"),
        (
            {"reasoning": {"effort": "none"}, "thinking": {"type": "enabled"}},
            "reasoning.effort",
        ),
    ],
)
def test_refusals_name_the_field(scripted: Scripted, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        read(scripted, **fields)
    assert as_sent(caught.value.param) == param


@pytest.mark.parametrize(
    ("param", "sent"),
    [
        (None, None),
        ("messages", "input"),
        ("input[2].role", "input[2].role"),
        ("tools[3].function.parameters.properties", "tools[3].parameters.properties"),
        ("tool_choice.function.name", "tool_choice.name"),
        ("response_format.json_schema.schema", "text.format.schema"),
        ("response_format.type", "text.format.type"),
    ],
)
def test_names_of_the_other_dialect_are_translated(param: str | None, sent: str | None) -> None:
    assert as_sent(param) == sent

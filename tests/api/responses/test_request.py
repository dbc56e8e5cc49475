"""api.responses.request: the same chat completion in other words, and refusals in those words."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from api.chat_request import ChatRequest, read_chat_request
from api.errors import ApiError
from api.responses.request import (
    ResponseRequest,
    as_sent,
    name_as_sent,
    read_responses_request,
)
from api.responses.schema import HARMLESS, KNOWN, OF_CHAT, OWN_NAMES, REFUSED
from api.schema import HARMLESS as CHAT_HARMLESS
from api.schema import KNOWN as CHAT_KNOWN
from api.schema import REFUSED as CHAT_REFUSED
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
        ({"context_management": []}, {}),
        ({"context_management": None}, {}),
        *(
            (extension, extension)
            for extension in (
                {"frequency_penalty": 0.5, "presence_penalty": -0.5, "repetition_penalty": 1.1},
                {"logit_bias": {"1": 5}, "min_tokens": 2, "bad_words": ["no"]},
                {"stop_token_ids": [7], "allowed_token_ids": [7, 8], "ignore_eos": True},
                {"structured_outputs": {"regex": "a+"}},
                {"guided_json": {"type": "object"}},
                {"guided_choice": ["a", "b"]},
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
        ({"context_management": [{"type": "compaction"}]}, "context_management[0].type"),
        (
            {"context_management": [{"type": "compaction", "compact_threshold": 1000}]},
            "context_management[0].type",
        ),
        ({"context_management": [{"strategy": "summary"}]}, "context_management[0].type"),
        ({"context_management": [None]}, "context_management[0]"),
        ({"context_management": "auto"}, "context_management"),
        ({"context_management": {}}, "context_management.strategy"),
        ({"context_management": {"strategy": "forget"}}, "context_management.strategy"),
        ({"logit_bias": {"one": 1}}, "logit_bias"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"min_tokens": 9, "max_output_tokens": 8}, "min_tokens"),
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
    ("name", "value"),
    [
        ("messages", [{"role": "user", "content": "Hi"}]),
        ("max_tokens", 5),
        ("max_completion_tokens", 5),
        ("response_format", {"type": "json_object"}),
        ("reasoning_effort", "high"),
        ("logprobs", True),
        ("n", 2),
        ("prompt_logprobs", 0),
        ("prompt_logprobs", 3),
        ("return_token_ids", True),
        ("return_tokens_as_token_ids", True),
        ("continue_final_message", True),
        ("add_generation_prompt", False),
        ("modalities", ["text", "audio"]),
        ("echo", True),
        ("functions", [FUNCTION]),
        ("truncate_prompt_tokens", 0),
        ("web_search_options", {}),
    ],
)
def test_a_field_of_chat_completions_alone_is_refused_under_its_own_name(
    scripted: Scripted, name: str, value: Any
) -> None:
    with pytest.raises(ApiError) as caught:
        read(scripted, **{name: value})
    name_as_sent(caught.value)
    assert (caught.value.status, caught.value.code) == (400, "unsupported_parameter")
    assert caught.value.param == name and name in caught.value.message
    assert OWN_NAMES.get(name, "") in caught.value.message


def test_no_field_of_a_chat_completion_is_dropped_in_silence() -> None:
    """Each is honoured, known to change nothing, or refused."""
    told = KNOWN | HARMLESS | REFUSED | OF_CHAT
    assert CHAT_KNOWN | CHAT_REFUSED | CHAT_HARMLESS - {"prediction", "verbosity"} <= told


def test_what_asks_for_nothing_is_let_through(
    scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    nothing = {name: None for name in OF_CHAT} | {
        "n": 1,
        "logprobs": False,
        "return_token_ids": False,
        "add_generation_prompt": True,
        "modalities": ["text"],
        "functions": [],
        "frequency_penalty": 0,
    }
    read(scripted, **nothing)
    assert not caplog.records


@pytest.mark.parametrize(
    ("param", "sent"),
    [
        (None, None),
        ("messages", "input"),
        ("input[2].role", "input[2].role"),
        ("input[2].tool_call_id", "input[2].call_id"),
        ("input[2].tool_calls[0].function.arguments", "input[2]"),
        ("input[2].reasoning_content", "input[2]"),
        ("tools[3].function.parameters.properties", "tools[3].parameters.properties"),
        ("tool_choice.function.name", "tool_choice.name"),
        ("response_format.json_schema.schema", "text.format.schema"),
        ("response_format.type", "text.format.type"),
    ],
)
def test_names_of_the_other_dialect_are_translated(param: str | None, sent: str | None) -> None:
    assert as_sent(param) == sent

"""api.chat_request: what is honoured, what is ignored, what is refused, and under which name."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from api.chat.encoding import Encoder
from api.chat.messages import Message, ToolCall
from api.chat_request import ChatRequest, read_chat_request
from api.errors import ApiError
from api.facts import ModelFacts
from engine.client import GenerationDefaults
from tests.api.scripted_engine import MODEL, body

FACTS = ModelFacts(
    names=(MODEL, "alias"),
    vocab_size=320,
    max_model_len=4096,
    defaults=GenerationDefaults(temperature=0.6, top_p=0.95, top_k=40),
    end_token_ids=(1, 7),
    call_token_ids=(6,),
)
WEATHER = {"name": "weather", "parameters": {"type": "object", "z": 1, "a": 2}, "x-kept": None}


def read(**fields: Any) -> ChatRequest:
    return read_chat_request(body(**fields), FACTS)


def refusal(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(**fields)
    return caught.value


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": user(None)}, "messages[0].content"),
        (
            {"messages": user([{"type": "image_url", "image_url": {}}])},
            "messages[0].content[0].type",
        ),
        ({"messages": user([{"type": "text"}])}, "messages[0].content[0].text"),
        ({"messages": user([{"type": "text", "text": "a"}, {}])}, "messages[0].content[1].type"),
        ({"messages": [{"role": "tool", "content": "4"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "prefix": True}, *user("a")]}, "messages[0].prefix"),
        ({"messages": [{"role": "user", "content": "a", "prefix": True}]}, "messages[0].prefix"),
        ({"messages": user("a"), "continue_final_message": True}, "continue_final_message"),
        (
            {
                "messages": [*user("a"), {"role": "assistant", "content": "b"}],
                "continue_final_message": True,
                "add_generation_prompt": True,
            },
            "add_generation_prompt",
        ),
        ({"messages": user("a"), "add_generation_prompt": False}, "add_generation_prompt"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 10**30}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**12}, "max_tokens"),
        ({"max_completion_tokens": 0, "max_tokens": 5}, "max_completion_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"presence_penalty": -3}, "presence_penalty"),
        ({"seed": 2**63}, "seed"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": ["x", "a" * 1001]}, "stop"),
        ({"stop_token_ids": [320]}, "stop_token_ids[0]"),
        ({"logit_bias": {"320": 1}}, "logit_bias"),
        ({"logit_bias": {"one": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"user_id": "a b"}, "user_id"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"thinking": {"type": "maybe"}}, "thinking.type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [{"type": "function", "function": WEATHER}] * 2}, "tools[1].function.name"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": WEATHER}] * 129}, "tools"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
    ],
)
def test_bad_values_are_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = refusal(**fields)
    assert (error.status, error.type, error.param) == (400, "invalid_request_error", param)


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "structural_tag"}},
        {"tool_choice": {"type": "custom", "custom": {"name": "weather"}}},
        {"functions": [WEATHER]},
        {"function_call": "auto"},
        {"audio": {"voice": "alloy"}},
        {"modalities": ["text", "audio"]},
        {"web_search_options": {"search_context_size": "low"}},
        {"web_search_options": {}},
        {"lora_path": "someone/else"},
        {"no_stop_trim": True},
        {"return_hidden_states": True},
        {"logprob_token_ids": [1]},
        {"truncate_prompt_tokens": 0},
    ],
)
def test_what_would_change_the_answer_is_refused_until_it_is_honoured(
    fields: dict[str, Any],
) -> None:
    error = refusal(**fields)
    assert (error.status, error.code) == (400, "unsupported_parameter")
    assert error.param in fields


@pytest.mark.parametrize(
    "fields",
    [
        {"prediction": {"type": "content", "content": "Hi"}},
        {"response_format": {"type": "text"}},
        {"metadata": {"run": "1"}, "store": False, "service_tier": "auto", "user": "u"},
        {"functions": None, "function_call": None, "audio": None, "tools": None, "stop": None},
        {"functions": [], "echo": False, "chat_template": "", "structured_outputs": {}},
        {"tool_choice": "auto"},
        {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": True}},
        {"messages": [{"role": "user", "content": "Hi", "name": "x", "annotations": None}]},
    ],
)
def test_what_changes_nothing_is_accepted_in_silence(
    fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert read(**fields).messages[0].content == "Hi"
    assert not caplog.records


def test_an_unknown_field_is_accepted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    read(field_of_the_future=1)
    read(field_of_the_future=2)
    assert [r.args for r in caplog.records] == [("field_of_the_future",)]


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b'"x"', b"[" * 100_000, b'{"model": "\xff"}', b'{"n": NaN}'],
)
def test_malformed_bodies(raw: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        read_chat_request(raw, FACTS)
    assert caught.value.status == 400


def test_an_unknown_model_is_a_404() -> None:
    error = refusal(model="gpt-5")
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert read(model="alias").model == MODEL


def test_silent_fields_take_the_checkpoints_defaults() -> None:
    sampling = read(temperature=None).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.6, 0.95, 40)
    assert sampling.max_tokens == FACTS.max_model_len
    assert sampling.stop_token_ids == (1, 7)
    asked = read(temperature=0, top_p=1, top_k=-1, stop_token_ids=[9]).sampling
    assert (asked.temperature, asked.top_p, asked.top_k) == (0.0, 1.0, 0)
    assert asked.stop_token_ids == (1, 7, 9)
    assert read(ignore_eos=True).sampling.stop_token_ids == ()


def test_requests_without_a_seed_differ() -> None:
    assert read().sampling.seed != read().sampling.seed
    assert read(seed=-1).sampling.seed == read(seed=-1).sampling.seed >= 0


def test_the_newer_limit_wins() -> None:
    assert read(max_tokens=5, max_completion_tokens=7).sampling.max_tokens == 7


@pytest.mark.parametrize(
    ("fields", "thinking"),
    [
        ({}, False),
        ({"thinking": {"type": "enabled"}}, True),
        ({"thinking": {"type": "disabled"}}, False),
        ({"chat_template_kwargs": {"thinking": True}}, True),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "max"}, True),
        ({"thinking": {"type": "enabled"}, "reasoning_effort": "low"}, True),
    ],
)
def test_thinking_has_four_names(fields: dict[str, Any], thinking: bool) -> None:
    assert read(**fields).thinking is thinking


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"thinking": {"type": "enabled"}, "reasoning_effort": "none"}, "reasoning_effort"),
        (
            {"thinking": {"type": "disabled"}, "chat_template_kwargs": {"thinking": True}},
            "chat_template_kwargs.thinking",
        ),
        (
            {"chat_template_kwargs": {"thinking": True, "enable_thinking": False}},
            "chat_template_kwargs.enable_thinking",
        ),
    ],
)
def test_contradictory_wishes_are_refused(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields).param == param


def test_function_objects_stay_as_they_were_sent() -> None:
    request = read(tools=[{"type": "function", "function": WEATHER, "extra": 1}])
    assert request.functions == [WEATHER]
    assert list(request.functions[0]["parameters"]) == ["type", "z", "a"]
    assert request.may_call


def test_history_reaches_the_encoder(encoder: Encoder) -> None:
    request = read(
        messages=[
            {
                "role": "developer",
                "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": " brief."}],
            },
            {"role": "user", "content": "Add 1 and 2"},
            {
                "role": "assistant",
                "content": None,
                "reasoning": "a sum",
                "refusal": None,
                "audio": None,
                "function_call": None,
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "index": 0,
                        "function": {"name": "add", "arguments": {"a": 1, "b": 2}},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "3"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "done"},
                    {"type": "text", "text": "It is 3."},
                ],
                "tool_calls": None,
            },
            {"role": "user", "content": "Thanks"},
        ]
    )
    assert request.messages == [
        Message("system", "Be brief."),
        Message("user", "Add 1 and 2"),
        Message(
            "assistant", "", reasoning="a sum", tool_calls=(ToolCall("c1", "add", '{"a":1,"b":2}'),)
        ),
        Message("tool", "3", tool_call_id="c1"),
        Message("assistant", "It is 3.", reasoning="done"),
        Message("user", "Thanks"),
    ]

"""Model profiles: what a checkpoint cannot do is refused by the field that asks for it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from api.anthropic.request import read_messages_request
from api.config import ChatConfig
from api.errors import ApiError
from api.profiles import PROFILES, choose_profile
from api.service import ChatService
from engine.client import GenerationDefaults
from tests.api.scripted_engine import MODEL, Scripted, body

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = {"id": "x", "type": "function", "function": {"name": "look", "arguments": "{}"}}
USER = {"role": "user", "content": "Hi"}


@pytest.fixture
def speciale(scripted: Scripted) -> Scripted:
    scripted.service = ChatService(
        scripted.engine,  # type: ignore[arg-type]
        scripted.encoder,
        (MODEL,),
        GenerationDefaults(),
        ChatConfig(model_profile="speciale"),
    )
    scripted.replies = ["hm</think>Yes"]
    return scripted


@pytest.mark.parametrize(
    ("choice", "model", "name"),
    [
        ("auto", "deepseek-ai/DeepSeek-V3.2", "v3.2"),
        ("auto", "deepseek-ai/DeepSeek-V3.2-Speciale", "speciale"),
        ("v3.2", "DeepSeek-V3.2-Speciale", "v3.2"),
        ("speciale", "mine", "speciale"),
    ],
)
def test_the_name_decides_unless_told(choice: Any, model: str, name: str) -> None:
    assert choose_profile(choice, model).name == name


def test_speciale_thinks_at_length(speciale: Scripted) -> None:
    answer = asyncio.run(speciale.complete())
    assert answer["choices"][0]["message"]["reasoning_content"] == "hm"
    (submit,) = speciale.engine.submits
    assert submit.sampling.max_tokens == 4096 - len(submit.token_ids), "128K, within the window"
    assert PROFILES["speciale"].default_max_tokens == 131_072
    asyncio.run(speciale.complete(reasoning_effort="high", max_tokens=5))
    assert speciale.engine.submits[-1].sampling.max_tokens == 5


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"thinking": {"type": "disabled"}}, "thinking"),
        ({"reasoning_effort": "none"}, "reasoning_effort"),
        ({"chat_template_kwargs": {"thinking": False}}, "chat_template_kwargs.thinking"),
        ({"tools": [TOOL]}, "tools"),
        ({"tools": [TOOL], "tool_choice": "none"}, "tools"),
        (
            {
                "messages": [
                    USER,
                    {"role": "assistant", "tool_calls": [CALL]},
                    {"role": "tool", "tool_call_id": "x", "content": ""},
                ]
            },
            "messages[1].tool_calls",
        ),
    ],
)
def test_what_speciale_cannot_do_is_refused(speciale: Scripted, fields: Any, param: str) -> None:
    with pytest.raises(ApiError, match="'speciale'") as caught:
        speciale.service.prepare(body(**fields))
    assert (caught.value.status, caught.value.param) == (400, param)
    assert caught.value.code == "unsupported_value"


def test_also_in_anthropics_dialect(speciale: Scripted) -> None:
    request: dict[str, Any] = {"model": MODEL, "max_tokens": 9, "messages": [USER]}

    def refused(**fields: Any) -> str | None:
        with pytest.raises(ApiError) as caught:
            speciale.service.prepare(msgspec.json.encode(request | fields), read_messages_request)
        return caught.value.param

    assert refused(thinking={"type": "disabled"}) == "thinking"
    assert refused(tools=[{"name": "look", "input_schema": {"type": "object"}}]) == "tools"
    found, _ = speciale.service.prepare(msgspec.json.encode(request), read_messages_request)
    assert found.thinking


def test_v32_refuses_none_of_it(scripted: Scripted) -> None:
    scripted.service.prepare(body(tools=[TOOL], thinking={"type": "disabled"}))
    assert not scripted.service.prepare(body())[0].thinking

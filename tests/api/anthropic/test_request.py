"""api.anthropic.request: answers that the client begins, and the extensions of this server."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from api.anthropic.request import read_count_request, read_messages_request
from api.anthropic.response import message_of
from api.chat.markers import THINK_END, THINK_START
from api.chat_request import ChatRequest
from api.conversation.context_management import ContextManagement
from api.errors import ApiError
from tests.api.scripted_engine import MODEL, Scripted

USER: Any = {"role": "user", "content": "Hi"}
TOOL = {"name": "find", "input_schema": {"type": "object"}}


def body(*said: Any, **fields: Any) -> bytes:
    request = {"model": MODEL, "max_tokens": 50, "messages": [USER, *said], **fields}
    return msgspec.json.encode(request)


def read(scripted: Scripted, *said: Any, **fields: Any) -> ChatRequest:
    return read_messages_request(body(*said, **fields), scripted.service.facts)


def answer(scripted: Scripted, *said: Any, **fields: Any) -> dict[str, Any]:
    async def run() -> Any:
        request = body(*said, **fields)
        turn = await scripted.service.start(request, read=read_messages_request)
        async with turn:
            return msgspec.json.decode(msgspec.json.encode(message_of(await turn.completion())))

    message: dict[str, Any] = asyncio.run(run())
    return message


@pytest.mark.parametrize(
    ("content", "fields", "end"),
    [
        ("Well", {}, f"{THINK_END}Well"),
        ([{"type": "text", "text": "We"}, {"type": "text", "text": "ll"}], {}, f"{THINK_END}Well"),
        ("Well", {"thinking": {"type": "enabled"}}, f"{THINK_START}{THINK_END}Well"),
        (
            [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Well"}],
            {"thinking": {"type": "enabled"}},
            f"{THINK_START}hm{THINK_END}Well",
        ),
        (
            [{"type": "thinking", "thinking": "hm"}],
            {"thinking": {"type": "enabled"}},
            f"{THINK_START}hm",
        ),
    ],
)
def test_a_last_message_from_the_assistant_is_continued(
    scripted: Scripted, content: Any, fields: dict[str, Any], end: str
) -> None:
    scripted.replies = ["</think> ok" if end.endswith("hm") else " ok"]
    message = answer(scripted, {"role": "assistant", "content": content}, **fields)
    prompt = scripted.service.decode(scripted.engine.submits[-1].token_ids)
    assert prompt.endswith(end)
    # What the client began with does not come back.
    assert [block["text"] for block in message["content"] if block["type"] == "text"] == [" ok"]
    counted = read_count_request(
        msgspec.json.encode(
            {
                "model": MODEL,
                "messages": [USER, {"role": "assistant", "content": content}],
                **fields,
            }
        ),
        scripted.service.facts,
    )
    assert counted.continues


@pytest.mark.parametrize(
    ("said", "fields", "param"),
    [
        (
            [{"type": "tool_use", "id": "c", "name": "find", "input": {}}],
            {"tools": [TOOL]},
            "messages[1].tool_calls",
        ),
        ("Well", {"tools": [TOOL], "tool_choice": {"type": "any"}}, "tool_choice"),
        (
            [{"type": "thinking", "thinking": "hm"}],
            {"thinking": {"type": "disabled"}},
            "messages[1].reasoning_content",
        ),
        (
            "Well",
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
            "output_config.format.schema",
        ),
    ],
)
def test_what_cannot_be_continued_is_named(
    scripted: Scripted, said: Any, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(ApiError) as caught:
        answer(scripted, {"role": "assistant", "content": said}, **fields)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize("system", [None, "Be brief.", [{"type": "text", "text": "Be brief."}]])
@pytest.mark.parametrize("thinking", [{"type": "enabled"}, {"type": "disabled"}])
def test_a_lone_message_from_the_assistant_answers_nothing(
    scripted: Scripted, system: Any, thinking: Any
) -> None:
    with pytest.raises(ApiError) as caught:
        answer(
            scripted,
            messages=[{"role": "assistant", "content": "Well"}],
            system=system,
            thinking=thinking,
        )
    assert (caught.value.status, caught.value.param) == (400, "messages[0]")
    assert "no message that the prefix could answer" in caught.value.message


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
FORMAT = {"type": "json_schema", "schema": SCHEMA}


@pytest.mark.parametrize(
    "fields", [{"output_config": {"format": FORMAT}}, {"output_format": FORMAT}]
)
def test_the_answer_may_be_held_to_a_schema(scripted: Scripted, fields: dict[str, Any]) -> None:
    request = read(scripted, **fields)
    assert request.answer is not None and request.answer.calls is None
    assert request.answer.format is not None
    assert (request.answer.format.value, request.answer.format.strict) == (SCHEMA, True)
    answer(scripted, **fields)
    (submit,) = scripted.engine.submits
    assert submit.grammar is not None and submit.grammar.required
    assert read(scripted, output_config={"effort": "high"}).answer is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"output_config": {"format": FORMAT}, "output_format": FORMAT}, "output_format.schema"),
        ({"output_config": {"format": {"type": "yaml"}}}, "output_config.format.type"),
        ({"output_format": {"type": "json_schema"}}, "output_format.schema"),
        (
            {"output_format": {"type": "json_schema", "schema": {"type": "no such type"}}},
            "output_format.schema",
        ),
    ],
)
def test_a_schema_that_cannot_be_kept_is_named(
    scripted: Scripted, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(ApiError) as caught:
        answer(scripted, **fields)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_the_extensions_mean_what_they_mean_in_a_chat_completion(scripted: Scripted) -> None:
    request = read(
        scripted,
        missing_reasoning="error",
        thinking_retention="until_marker",
        retention_marker="Out:",
        context_management={"strategy": "discard_75", "trigger": 0.5},
        lenient_tool_calls=True,
        cache_salt="s",
        priority=4,
    )
    assert request.missing_reasoning == "error"
    assert request.retention_markers == ("Out:",)
    assert request.context_management == ContextManagement("discard_75", 0.5)
    assert request.lenient_tool_calls is True
    assert (request.cache_salt, request.priority) == ("s", 4)
    plain = read(scripted)
    assert plain.missing_reasoning is plain.context_management is plain.priority is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"missing_reasoning": "perhaps"}, "missing_reasoning"),
        ({"context_management": {"strategy": "forget"}}, "context_management.strategy"),
        (
            {"context_management": {"strategy": "summary", "trigger": 2}},
            "context_management.trigger",
        ),
        ({"retention_marker": "x"}, "retention_marker"),
        ({"cache_salt": "s" * 513}, "cache_salt"),
        ({"priority": 2**40}, "priority"),
    ],
)
def test_wrong_extensions_are_named(scripted: Scripted, fields: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        read(scripted, **fields)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_anthropics_own_context_management_has_no_effect(scripted: Scripted) -> None:
    edits = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
    assert read(scripted, context_management=edits).context_management is None


def test_the_answer_says_what_was_dropped(scripted: Scripted) -> None:
    use = {"type": "tool_use", "id": "c", "name": "find", "input": {"a": "word " * 200}}
    result = {"type": "tool_result", "tool_use_id": "c", "content": "x"}
    message = answer(
        scripted,
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result]},
        tools=[TOOL],
        context_management={"strategy": "discard_all", "trigger": 0.1},
    )
    (entry,) = message["context_management"]["applied"]
    assert (entry["strategy"], entry["removed_steps"]) == ("discard_all", 1)
    assert "context_management" not in answer(scripted)

"""Pieces of an answer become content blocks that Anthropic's clients can put together."""

from __future__ import annotations

import msgspec
import pytest

from api.anthropic.response import Blocks, error_body, message_of
from api.anthropic.schema import Event
from api.errors import ApiError, invalid
from api.response import (
    AssistantMessage,
    ChatCompletion,
    ChunkChoice,
    CompletionChoice,
    Delta,
    FinishReason,
    FunctionDelta,
    FunctionResult,
    ToolCallDelta,
    ToolCallResult,
    Usage,
)


def shown(pieces: list[ChunkChoice]) -> list[object]:
    blocks = Blocks("sig")
    events: list[Event] = [event for piece in pieces for event in blocks.feed(piece)]
    return [msgspec.to_builtins(event) for event in events]


def piece(finish: FinishReason | None = None, **delta: object) -> ChunkChoice:
    return ChunkChoice(0, Delta(**delta), finish_reason=finish)  # type: ignore[arg-type]


def call(index: int, text: str, name: str | None = None) -> ToolCallDelta:
    if name is None:
        return ToolCallDelta(index, FunctionDelta(text))
    return ToolCallDelta(index, FunctionDelta(text, name), f"call_{index}", "function")


def test_blocks_follow_each_other_with_dense_indexes() -> None:
    events = shown(
        [
            piece(reasoning_content="Hm"),
            piece(reasoning_content="."),
            piece(content="So"),
            piece(tool_calls=[call(0, "", "find")]),
            piece(tool_calls=[call(0, '{"a":')]),
            piece(tool_calls=[call(0, "1}")]),
            piece(tool_calls=[call(1, "", "list")]),
            piece("tool_calls"),
        ]
    )
    start, delta, stop = "content_block_start", "content_block_delta", "content_block_stop"
    use = {"type": "tool_use", "input": {}}
    assert events == [
        {
            "type": start,
            "index": 0,
            "content_block": {"type": "thinking", "thinking": "", "signature": ""},
        },
        {"type": delta, "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hm"}},
        {"type": delta, "index": 0, "delta": {"type": "thinking_delta", "thinking": "."}},
        {"type": delta, "index": 0, "delta": {"type": "signature_delta", "signature": "sig"}},
        {"type": stop, "index": 0},
        {"type": start, "index": 1, "content_block": {"type": "text", "text": ""}},
        {"type": delta, "index": 1, "delta": {"type": "text_delta", "text": "So"}},
        {"type": stop, "index": 1},
        {"type": start, "index": 2, "content_block": use | {"id": "call_0", "name": "find"}},
        {"type": delta, "index": 2, "delta": {"type": "input_json_delta", "partial_json": '{"a":'}},
        {"type": delta, "index": 2, "delta": {"type": "input_json_delta", "partial_json": "1}"}},
        {"type": stop, "index": 2},
        {"type": start, "index": 3, "content_block": use | {"id": "call_1", "name": "list"}},
        {"type": stop, "index": 3},
    ]


def test_an_answer_of_nothing_has_no_block() -> None:
    assert shown([piece("stop")]) == []


def completion(finish: FinishReason, stop: str | None = None) -> ChatCompletion:
    function = FunctionResult("find", '{"a": 1}')
    calls = [ToolCallResult(id="c", function=function)] if finish == "tool_calls" else msgspec.UNSET
    message = AssistantMessage(content="So", reasoning_content="Hm.", tool_calls=calls)
    choice = CompletionChoice(
        0, message, finish, stop_reason=msgspec.UNSET if stop is None else stop
    )
    return ChatCompletion(
        id="m1",
        created=0,
        model="m",
        system_fingerprint="f",
        choices=[choice],
        usage=Usage.of(prompt=100, cached=64, completion=7, reasoning=3),
    )


@pytest.mark.parametrize(
    ("finish", "stop", "reason"),
    [
        ("stop", None, "end_turn"),
        ("stop", "END", "stop_sequence"),
        ("length", None, "max_tokens"),
        ("tool_calls", None, "tool_use"),
    ],
)
def test_a_whole_message(finish: FinishReason, stop: str | None, reason: str) -> None:
    found = msgspec.json.decode(msgspec.json.encode(message_of(completion(finish, stop))))
    assert (found["stop_reason"], found["stop_sequence"]) == (reason, stop)
    assert found["content"][:2] == [
        {"type": "thinking", "thinking": "Hm.", "signature": "m1"},
        {"type": "text", "text": "So"},
    ]
    uses = [{"type": "tool_use", "id": "c", "name": "find", "input": {"a": 1}}]
    assert found["content"][2:] == (uses if finish == "tool_calls" else [])
    assert found["usage"] == {
        "input_tokens": 36,
        "cache_read_input_tokens": 64,
        "cache_creation_input_tokens": 0,
        "output_tokens": 7,
    }


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (invalid("too big", "max_tokens"), "invalid_request_error"),
        (ApiError(401, "key"), "authentication_error"),
        (ApiError(404, "model"), "not_found_error"),
        (ApiError(429, "wait"), "rate_limit_error"),
        (ApiError(500, "bug"), "api_error"),
        (ApiError(503, "busy"), "overloaded_error"),
    ],
)
def test_errors(error: ApiError, kind: str) -> None:
    body = msgspec.to_builtins(error_body(error))
    assert body["type"] == "error" and body["error"]["type"] == kind
    assert error.message in body["error"]["message"]
    assert (error.param or "") in body["error"]["message"]


@pytest.mark.parametrize(
    ("param", "shown"),
    [
        ("messages[1].tool_calls[0].function.arguments", "messages[1].content"),
        ("messages[1].reasoning_content", "messages[1].content"),
        ("messages[2].role", "messages[2].content"),
        ("messages[2].content[1]", "messages[2].content[1]"),
        ("messages[0]", "messages[0]"),
        ("messages", "messages"),
        ("tools[0].input_schema", "tools[0].input_schema"),
    ],
)
def test_a_field_that_a_message_does_not_have_here_is_its_content(param: str, shown: str) -> None:
    message = error_body(invalid("Why.", param)).error.message
    assert message == f"{shown}: Why."

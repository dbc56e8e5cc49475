"""Chunks of chat answers, ours and other servers'."""

from __future__ import annotations

import json
from typing import Any

import pytest

from loadtest.live.answer import Answer, AnswerError
from tests.loadtest.live.chat_server import delta, finish


def taken(*chunks: Any) -> tuple[Answer, list[bool]]:
    answer = Answer()
    return answer, [answer.take(json.dumps(chunk).encode()) for chunk in chunks]


def test_only_what_says_something_counts_as_a_token() -> None:
    answer, said = taken(
        delta(role="assistant", content=""),
        delta(reasoning_content="I think"),
        delta(reasoning=" on"),
        delta(content="Yes"),
        finish("stop"),
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 9}},
    )
    assert said == [False, True, True, True, False, False]
    assert (answer.reasoning, answer.content) == ("I think on", "Yes")
    assert answer.finish_reason == "stop" and answer.usage is not None
    assert not answer.done and not answer.take(b"[DONE]") and answer.done


def test_calls_are_put_together_and_sent_back() -> None:
    def part(index: int, **fields: Any) -> Any:
        return delta(tool_calls=[{"index": index, **fields}])

    answer, said = taken(
        delta(reasoning_content="hm"),
        part(1, id="b", function={"name": "two", "arguments": "{"}),
        part(0, id="a", function={"name": "one"}),
        part(1, function={"arguments": "}"}),
    )
    assert all(said)
    assert [(one.id, one.name, one.arguments) for one in answer.tool_calls] == [
        ("a", "one", ""),
        ("b", "two", "{}"),
    ]
    echoed = answer.message(with_reasoning=True)
    assert echoed["reasoning_content"] == "hm" and len(echoed["tool_calls"]) == 2
    assert "reasoning_content" not in answer.message(with_reasoning=False)


@pytest.mark.parametrize(
    ("usage", "cached", "reasoning"),
    [
        ({}, 0, 0),
        ({"prompt_tokens_details": None, "completion_tokens_details": None}, 0, 0),
        ({"prompt_tokens_details": {"cached_tokens": 64}}, 64, 0),
        ({"prompt_tokens_details": {"cached_tokens": 0}, "prompt_cache_hit_tokens": 9}, 0, 0),
        ({"prompt_cache_hit_tokens": 128}, 128, 0),
        ({"completion_tokens_details": {"reasoning_tokens": 5}}, 0, 5),
    ],
)
def test_dialects_of_usage(usage: Any, cached: int, reasoning: int) -> None:
    answer, _ = taken({"choices": [], "usage": usage})
    assert answer.usage is not None
    assert (answer.usage.cached_tokens, answer.usage.reasoning_tokens) == (cached, reasoning)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"choices": 3}', b"\xff"])
def test_what_is_no_chunk_is_refused(data: bytes) -> None:
    with pytest.raises(AnswerError, match="no chunk"):
        Answer().take(data)


@pytest.mark.parametrize("error", [{"message": "engine died"}, "engine died"])
def test_an_error_in_the_stream_is_said(error: Any) -> None:
    with pytest.raises(AnswerError, match="engine died"):
        taken({"error": error})

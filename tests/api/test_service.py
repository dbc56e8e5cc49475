"""api.service and api.turn: submitting, refusing, and what the engine is told at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from api.errors import ApiError
from engine.messages import Output, Refused, Span
from scheduler.retention import flip_point
from tests.api.scripted_engine import Scripted, body

TOOL = {"type": "function", "function": {"name": "get_date", "parameters": {"type": "object"}}}
CALL = (
    '<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_date">\n\n</｜DSML｜invoke>\n'
    "</｜DSML｜function_calls>"
)


def refusal(scripted: Scripted, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        asyncio.run(scripted.service.start(body(**fields)))
    return caught.value


def test_max_tokens_is_clipped_to_the_room_left(scripted: Scripted) -> None:
    asyncio.run(scripted.complete(max_tokens=4096))
    (submit,) = scripted.engine.submits
    assert submit.sampling.max_tokens == 4096 - len(submit.token_ids)


def test_the_window_must_hold_the_prompt_and_one_token(scripted: Scripted) -> None:
    overhead = len(scripted.service.prepare(body())[1].token_ids) - len("Hi")
    text = "x" * (scripted.engine.ready.max_model_len - 1 - overhead)
    asyncio.run(scripted.complete(messages=[{"role": "user", "content": text}]))
    assert scripted.engine.submits[0].sampling.max_tokens == 1
    error = refusal(scripted, messages=[{"role": "user", "content": text + "x"}])
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", "messages")


def test_long_bodies_are_prepared_like_short_ones(scripted: Scripted) -> None:
    # Above the limit for inline work: white space between the fields.
    padded = body(max_tokens=3) + b" " * 100_000
    turn = asyncio.run(scripted.service.start(padded))
    assert turn.request.sampling.max_tokens == 3


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"role": "assistant", "content": "Hi"}], "messages[0].role"),
        (
            [
                {"role": "user", "content": "Hi"},
                {"role": "tool", "tool_call_id": "x", "content": ""},
            ],
            "messages[1].role",
        ),
        (
            [
                {"role": "user", "content": "Hi"},
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "[1]"}}],
                },
                {"role": "tool", "tool_call_id": "a", "content": ""},
            ],
            "messages[1].tool_calls[0].function.arguments",
        ),
        (
            [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f"}}]},
                {"role": "tool", "tool_call_id": "b", "content": ""},
            ],
            "messages[2].tool_call_id",
        ),
        (
            [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f"}}]},
            ],
            "messages[1].tool_calls",
        ),
    ],
)
def test_broken_histories_are_refused_by_message(
    scripted: Scripted, messages: list[dict[str, Any]], param: str
) -> None:
    error = refusal(scripted, messages=messages)
    assert (error.status, error.param) == (400, param)
    assert not scripted.engine.submits


def test_the_engines_refusal_reaches_the_client(scripted: Scripted) -> None:
    scripted.engine.refusal = Refused("x", 429, "queue_full", "full", None, 3.0)
    error = refusal(scripted)
    assert (error.status, error.code, error.type) == (429, "queue_full", "rate_limit_error")
    assert error.headers["retry-after"] == "3"


def test_a_dead_engine_is_a_503(scripted: Scripted) -> None:
    scripted.engine.death = "killed"
    error = refusal(scripted)
    assert (error.status, error.code) == (503, "engine_dead")
    with pytest.raises(ApiError, match="killed"):
        scripted.backend.require()


def test_an_engine_that_dies_on_the_way_is_a_503(scripted: Scripted) -> None:
    async def run() -> None:
        turn = await scripted.service.start(body())
        scripted.engine.death = "killed"
        async with turn:
            await turn.completion()

    with pytest.raises(ApiError) as caught:
        asyncio.run(run())
    assert caught.value.status == 503


def test_a_choice_that_fails_takes_nothing_from_those_before_it(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> list[str]:
        turn = await scripted.service.start(body(n=2))
        name = scripted.engine.submits[0].id
        together = [
            Output(name, 0, scripted.tokens("Hi")[:1], None, None),
            Output(name, 1, [], None, "error"),
        ]

        async def news() -> AsyncGenerator[list[Output], None]:
            yield together

        monkeypatch.setattr(turn, "_news", news)
        said = []
        async with turn:
            with pytest.raises(ApiError, match="gave up"):
                async for piece in turn.pieces():
                    said.append(piece.delta.content)
        return said

    assert asyncio.run(run()) == ["H"]


def test_leaving_early_aborts(scripted: Scripted) -> None:
    async def run() -> str:
        turn = await scripted.service.start(body(stream=True))
        async with turn:
            async for _ in turn.chunks():
                break
        return turn.id

    assert asyncio.run(run()) == scripted.engine.aborts[0]
    assert scripted.engine.open == 0


def test_the_spans_of_a_prompt_are_submitted(scripted: Scripted) -> None:
    asyncio.run(scripted.complete(thinking={"type": "enabled"}, user_id="u1", cache_salt="s"))
    (submit,) = scripted.engine.submits
    end = len(submit.token_ids)
    assert submit.spans == [Span(0, end - 1, "stable"), Span(end - 1, end, "reasoning")]
    assert (submit.tenant, submit.cache_salt) == ("u1", "s")


@pytest.mark.parametrize(
    ("fields", "reply", "ends", "why", "kinds"),
    [
        ({}, "Hello", True, "answer", ["stable"]),
        ({}, "Hello", False, "length", ["stable"]),
        ({"tools": [TOOL]}, CALL, True, "tool_calls", ["stable"]),
        ({"reasoning_effort": "low"}, "hm</think>Yes", True, "answer", ["reasoning", "answer"]),
        (
            {"reasoning_effort": "low", "tools": [TOOL]},
            "hm</think>\n\n" + CALL,
            True,
            "tool_calls",
            ["reasoning", "tool"],
        ),
        ({"reasoning_effort": "low"}, "hm", False, "length", ["reasoning"]),
        ({"stop": "l"}, "Hello", True, "answer", ["stable"]),
    ],
)
def test_the_engine_learns_how_a_turn_ended(
    scripted: Scripted, fields: dict[str, Any], reply: str, ends: bool, why: str, kinds: list[str]
) -> None:
    scripted.replies, scripted.ends = [reply], ends
    answer = asyncio.run(scripted.complete(**fields))
    (turn,) = scripted.engine.turns
    assert turn.why == why
    usage = answer["usage"]
    prompt_tokens = usage["prompt_tokens"]
    generated = [span for span in turn.spans if span.start >= prompt_tokens]
    assert [span.kind for span in generated] == kinds
    # The spans cover the sequence without a gap, and in thinking mode the first token that the
    # next user message changes is the prompt's own <think>.
    assert turn.spans[0].start == 0 and turn.spans[-1].end == usage["total_tokens"]
    assert all(a.end == b.start for a, b in pairwise(turn.spans))
    expected = prompt_tokens - 1 if "reasoning" in kinds else usage["total_tokens"]
    assert flip_point(turn.spans) == expected


def test_the_stream_says_each_thing_once(scripted: Scripted) -> None:
    scripted.replies = ["one", "another"]
    chunks = asyncio.run(scripted.stream(n=3, stream_options={"include_usage": True}))
    roles = [c["choices"][0] for c in chunks if c["choices"] and "role" in c["choices"][0]["delta"]]
    assert [choice["index"] for choice in roles] == [0, 1, 2]
    assert chunks[:3] == [c for c in chunks if c["choices"] and "role" in c["choices"][0]["delta"]]
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    assert {chunk["created"] for chunk in chunks} == {chunks[0]["created"]}
    *others, last = chunks
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 4 + 8 + 8
    assert all(chunk["usage"] is None for chunk in others)
    finishes = [c["choices"][0]["finish_reason"] for c in others]
    assert [reason for reason in finishes if reason] == ["stop"] * 3


def test_usage_is_left_out_unless_asked_for(scripted: Scripted) -> None:
    assert all("usage" not in chunk for chunk in asyncio.run(scripted.stream()))


def test_a_tool_call_sends_its_id_and_name_once(scripted: Scripted) -> None:
    scripted.replies = [
        CALL.replace(
            "\n\n</",
            '\n<｜DSML｜parameter name="a" string="true">long text</｜DSML｜parameter>\n</',
        )
    ]
    chunks = asyncio.run(scripted.stream(tools=[TOOL]))
    parts = [p for c in chunks for p in c["choices"][0]["delta"].get("tool_calls") or ()]
    first, *rest = parts
    assert first["index"] == 0 and first["type"] == "function"
    assert first["function"] == {"arguments": "", "name": "get_date"}
    assert len(rest) > 3  # it grows while it is written
    assert all(part.keys() == {"index", "function"} for part in rest)
    assert all(part["function"].keys() == {"arguments"} for part in rest)
    arguments = "".join(part["function"]["arguments"] for part in parts)
    assert msgspec.json.decode(arguments) == {"a": "long text"}

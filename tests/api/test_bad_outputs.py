"""What a model may write wrong, and what clients get then: whole, streamed, in every dialect.

No call is handed out that the model did not completely write, and no text is lost in silence.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest

from api.anthropic.request import read_messages_request
from api.anthropic.response import message_of
from api.responses.request import read_responses_request
from api.responses.response import ResponseTurn
from tests.api.chat.outputs import (
    CITY,
    CITY_JSON,
    CLOSE,
    INVOKE_END,
    OPEN,
    PARAMETER,
    UNCLOSED,
    block,
    invoke,
    parameter,
)
from tests.api.scripted_engine import MODEL, Scripted
from tests.api.test_server import http

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
}
FUNCTIONS = [{"name": "weather", "parameters": PARAMETERS}, {"name": "now"}]
TOOLS = [{"type": "function", "function": function} for function in FUNCTIONS]
WEATHER = ("weather", CITY_JSON)
PLAIN = block(CITY).replace("｜DSML｜", "")


class Row(NamedTuple):
    text: str
    content: str | None = None
    calls: list[tuple[str, str]] = []
    finish: str = "tool_calls"
    reasoning: str | None = None
    """Not None: in thinking mode."""
    error: str | None = None
    """The reason in `parse_error`."""
    ends: bool = True
    """False: max_tokens cuts it."""
    lenient: bool = False


def failed(text: str, reason: str, **more: Any) -> Row:
    """A block that is no call: all of it is content."""
    return Row(text, text, [], "stop", error=reason, **more)


NO_STRING = '<｜DSML｜parameter name="city">Paris</｜DSML｜parameter>'
NO_MARKER = '<parameter name="city" string="true">Paris</parameter>'
ROWS: dict[str, Row] = {
    "reasoning that never ends": Row("R", "", [], "stop", reasoning="R"),
    "calls inside reasoning": Row(f"R{block(CITY)}", None, [WEATHER], reasoning="R"),
    "a bare call inside reasoning": Row(f"R\n\n{CITY}", None, [WEATHER], reasoning="R"),
    "a second end of reasoning": Row("R</think>A</think>B", "AB", [], "stop", reasoning="R"),
    "an end of reasoning in chat mode": Row("A</think>B", "AB", [], "stop"),
    "a call without wrapper": Row(f"See.\n\n{CITY}", "See.", [WEATHER]),
    "a wrapper that is never closed": Row(f"\n\n{OPEN}\n{CITY}", None, [WEATHER]),
    "a call that is never closed in a wrapper that is": Row(
        block(CITY).replace(f"\n{INVOKE_END}", ""), None, [WEATHER]
    ),
    "an unfinished call behind a whole one, at the end": Row(
        f"\n\n{OPEN}\n{CITY}\n{UNCLOSED}",
        f"\n{UNCLOSED}",
        [WEATHER],
        error="unfinished tool call",
    ),
    "an unfinished call, at the end": failed(f"\n\n{OPEN}\n{UNCLOSED}", "unfinished tool call"),
    "an unfinished call, cut": Row(f"See.\n\n{OPEN}\n{UNCLOSED}", "See.", [], "length", ends=False),
    "an unfinished call behind a whole one, cut": Row(
        f"\n\n{OPEN}\n{CITY}\n{UNCLOSED}", None, [WEATHER], "length", ends=False
    ),
    "a parameter without its string attribute": failed(
        block(invoke("weather", NO_STRING)), "parameter without a string attribute"
    ),
    "the same, leniently": Row(block(invoke("weather", NO_STRING)), None, [WEATHER], lenient=True),
    "a parameter without the marker": failed(
        block(invoke("weather", NO_MARKER)), "neither a parameter nor the end of the call"
    ),
    "a parameter twice": failed(
        block(invoke("weather", PARAMETER, PARAMETER)), "duplicate parameter 'city'"
    ),
    "the same, leniently too": failed(
        block(invoke("weather", PARAMETER, PARAMETER)), "duplicate parameter 'city'", lenient=True
    ),
    "bare text for JSON": Row(
        block(invoke("weather", parameter("city", "Paris", False))), None, [WEATHER]
    ),
    "a string for a number": Row(
        block(invoke("weather", parameter("days", "3"))), None, [("weather", '{"days": "3"}')]
    ),
    "a string for a number, leniently": Row(
        block(invoke("weather", parameter("days", "3"))),
        None,
        [("weather", '{"days": 3}')],
        lenient=True,
    ),
    "arguments in a wrapper": Row(
        block(invoke("weather", parameter("arguments", CITY_JSON, False))), None, [WEATHER]
    ),
    "input in a wrapper, as text": Row(
        block(invoke("weather", parameter("input", CITY_JSON))), None, [WEATHER]
    ),
    "a wrapper of what the schema does not know": Row(
        block(invoke("weather", parameter("arguments", '{"x": 1}', False))),
        None,
        [("weather", '{"arguments": {"x": 1}}')],
    ),
    "JSON in place of parameters": failed(
        block(invoke("weather", CITY_JSON)), "neither a parameter nor the end of the call"
    ),
    "the same JSON, leniently": Row(
        block(invoke("weather", CITY_JSON)), None, [WEATHER], lenient=True
    ),
    "tags without the marker": Row(PLAIN, PLAIN, [], "stop"),
    "tags without the marker, leniently": Row(PLAIN, None, [WEATHER], lenient=True),
    "an unknown function": Row(
        block(invoke("forecast", PARAMETER)), None, [("forecast", CITY_JSON)]
    ),
    "a block without calls": failed(f"\n\n{OPEN}\n{CLOSE}", "a block without a tool call"),
    "text behind the calls": Row(
        f"{block(CITY)}\nDone.", None, [WEATHER], error="text after the tool calls"
    ),
}


def fields(row: Row) -> dict[str, Any]:
    mode = "disabled" if row.reasoning is None else "enabled"
    return {
        "tools": TOOLS,
        "thinking": {"type": mode},
        "lenient_tool_calls": row.lenient,
    }


@pytest.mark.parametrize("name", ROWS)
def test_a_whole_answer(scripted: Scripted, name: str) -> None:
    row = ROWS[name]
    scripted.replies, scripted.ends = [row.text], row.ends
    (choice,) = asyncio.run(scripted.complete(**fields(row)))["choices"]
    message = choice["message"]
    calls = [
        (call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls", ())
    ]
    assert (message["content"], calls, choice["finish_reason"]) == (
        row.content,
        row.calls,
        row.finish,
    )
    assert message.get("reasoning_content") == row.reasoning
    assert choice.get("parse_error", {}).get("reason") == row.error
    never_ended = name == "reasoning that never ends"
    assert choice.get("incomplete_reasoning", False) is never_ended
    assert "tool_calls" not in message or message["tool_calls"], "an empty list says there are some"


@pytest.mark.parametrize("step_tokens", [1, 7, 10_000])
@pytest.mark.parametrize("name", ROWS)
def test_a_streamed_answer_says_the_same(scripted: Scripted, name: str, step_tokens: int) -> None:
    row = ROWS[name]
    scripted.replies, scripted.ends = [row.text], row.ends
    scripted.engine.step_tokens = step_tokens
    chunks = [chunk["choices"][0] for chunk in asyncio.run(scripted.stream(**fields(row)))]
    deltas = [chunk["delta"] for chunk in chunks]
    assert "".join(delta.get("content") or "" for delta in deltas) == (row.content or "")
    assert "".join(d.get("reasoning_content", "") for d in deltas) == (row.reasoning or "")
    named: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for part in (part for delta in deltas for part in delta.get("tool_calls") or ()):
        if "id" in part:
            named[part["index"]] = part["function"]["name"]
        index = part["index"]
        arguments[index] = arguments.get(index, "") + part["function"]["arguments"]
    assert list(named) == list(range(len(named)))
    complete = [(named[index], text) for index, text in arguments.items() if is_json(text)]
    assert complete == row.calls, "what was begun and is no call is left without an end"
    *others, last = chunks
    assert last["finish_reason"] == row.finish
    assert all(chunk["finish_reason"] is None for chunk in others)
    assert last.get("parse_error", {}).get("reason") == row.error


SAID = f"Hm, 1 < 2.</think>Let me see.{block(CITY, invoke('now'))}"


def test_max_tokens_may_cut_anywhere(scripted: Scripted) -> None:
    """In reasoning, in content, inside a tag, inside an argument."""
    scripted.engine.step_tokens = 3
    scripted.ends = False
    asked = fields(Row("", reasoning=""))
    tokens = scripted.tokens(SAID)
    for cut in (*range(1, len(tokens), 3), len(tokens)):
        part = tokens[:cut]
        scripted.engine.script = lambda submit, choice, part=part: part  # type: ignore[misc]
        (whole,) = asyncio.run(scripted.complete(**asked))["choices"]
        chunks = [chunk["choices"][0] for chunk in asyncio.run(scripted.stream(**asked))]
        assert whole["finish_reason"] == chunks[-1]["finish_reason"] == "length"
        message, deltas = whole["message"], [chunk["delta"] for chunk in chunks]
        assert "Hm, 1 < 2.".startswith(message.get("reasoning_content", ""))
        assert "Let me see.".startswith((message["content"] or "").rstrip("\n<"))
        for name in ("content", "reasoning_content"):
            streamed = "".join(delta.get(name) or "" for delta in deltas)
            assert streamed == (message.get(name) or "")
        calls = [call["function"]["arguments"] for call in message.get("tool_calls", ())]
        written = scripted.service.decode(part).count(INVOKE_END)
        assert calls == [CITY_JSON, "{}"][:written]
        parts = [part for delta in deltas for part in delta.get("tool_calls") or ()]
        for index in (0, 1):
            text = "".join(p["function"]["arguments"] for p in parts if p["index"] == index)
            assert is_json(text) == (index < written)
    assert written == 2


ODD = "a > b && c < d; \"q\" 'p' \\ \t\r\n\n</parameter> 😀 null 2>&1 ｜DSML｜ </｜DSML｜x>\n"


@pytest.mark.parametrize(
    ("value", "step_tokens"),
    [("", 1), ("null", 1), ("{}", 1), (ODD, 1), (ODD * 60, 997)],
)
def test_any_text_comes_through_as_a_value(
    scripted: Scripted, value: str, step_tokens: int
) -> None:
    text = block(invoke("weather", parameter("city", value)), invoke("now"))
    scripted.replies, scripted.engine.step_tokens = [text], step_tokens
    (choice,) = asyncio.run(scripted.complete(tools=TOOLS))["choices"]
    found = [call["function"] for call in choice["message"]["tool_calls"]]
    assert [json.loads(function["arguments"]) for function in found] == [{"city": value}, {}]
    chunks = [c["choices"][0]["delta"] for c in asyncio.run(scripted.stream(tools=TOOLS))]
    parts = [part for delta in chunks for part in delta.get("tool_calls") or ()]
    for index, function in enumerate(found):
        streamed = "".join(p["function"]["arguments"] for p in parts if p["index"] == index)
        assert streamed == function["arguments"], "byte for byte"


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", ROWS)
def test_the_other_dialects_hand_out_the_same_calls(scripted: Scripted, name: str) -> None:
    row = ROWS[name]
    scripted.replies, scripted.ends = [row.text], row.ends
    common = {"model": MODEL, "thinking": fields(row)["thinking"]}
    common["lenient_tool_calls"] = row.lenient
    flat = [{"type": "function", **function} for function in FUNCTIONS]
    other = [
        {"name": function["name"], "input_schema": function.get("parameters")}
        for function in FUNCTIONS
    ]

    async def ask() -> tuple[Any, Any]:
        request = common | {"input": "Hi", "tools": flat}
        turn = await scripted.service.start(
            msgspec.json.encode(request), read=read_responses_request
        )
        async with turn:
            response = msgspec.to_builtins(await ResponseTurn(turn).response())
        messages = [{"role": "user", "content": "Hi"}]
        request = common | {"messages": messages, "tools": other, "max_tokens": 500}
        turn = await scripted.service.start(
            msgspec.json.encode(request), read=read_messages_request
        )
        async with turn:
            message = message_of(await turn.completion())
        return response, msgspec.json.decode(msgspec.json.encode(message))

    response, message = asyncio.run(ask())
    items = [item for item in response["output"] if item["type"] == "function_call"]
    whole = [item for item in items if item["status"] == "completed"]
    assert [(item["name"], item["arguments"]) for item in whole] == row.calls
    assert not any(is_json(item["arguments"]) for item in items if item not in whole)
    texts = [item["content"][0]["text"] for item in response["output"] if item["type"] == "message"]
    assert "".join(texts) == (row.content or "")
    assert response["status"] == ("completed" if row.ends else "incomplete")

    uses = [block for block in message["content"] if block["type"] == "tool_use"]
    assert [(use["name"], use["input"]) for use in uses] == [
        (name, json.loads(arguments)) for name, arguments in row.calls
    ]
    texts = [block["text"] for block in message["content"] if block["type"] == "text"]
    assert "".join(texts) == (row.content or "")
    reasons = {"length": "max_tokens", "tool_calls": "tool_use", "stop": "end_turn"}
    assert message["stop_reason"] == reasons[row.finish]


@pytest.mark.parametrize(
    ("path", "request_of"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "tools": TOOLS}),
        (
            "/v1/responses",
            {"input": "Hi", "tools": [{"type": "function", **f} for f in FUNCTIONS]},
        ),
        (
            "/v1/messages",
            {
                "messages": [{"role": "user", "content": "Hi"}],
                "tools": [{"name": f["name"]} for f in FUNCTIONS],
                "max_tokens": 4000,
            },
        ),
    ],
)
def test_values_of_any_depth_can_be_answered(
    scripted: Scripted, path: str, request_of: dict[str, Any]
) -> None:
    """What the parser can just read must be written out from a deeper stack."""
    scripted.engine.step_tokens = 5000

    async def use(client: httpx.AsyncClient) -> None:
        for levels in (100, *range(900, 1000, 7)):
            value = parameter("city", "[" * levels + "]" * levels, False)
            scripted.replies = [block(invoke("weather", value))]
            answer = await client.post(path, json={"model": MODEL, **request_of})
            assert answer.status_code == 200, levels
            assert "[" * levels in answer.text

    http(scripted.backend, use)

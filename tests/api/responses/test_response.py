"""Responses over a scripted model: the openai SDK, every event's type, streamed equals whole."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import msgspec
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from api.responses.request import read_responses_request
from api.responses.response import ResponseTurn
from tests.api.scripted_engine import MODEL, Scripted
from tests.api.test_server import CALLS, http, sdk

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TOOLS: Any = [
    {"type": "function", "name": name, "parameters": {"type": "object"}, "strict": False}
    for name in ("get_date", "add")
]
THINKING: Any = {"reasoning": {"effort": "high"}}


def raw_events(scripted: Scripted, **fields: Any) -> list[dict[str, Any]]:
    """The data of a stream's events; each event's name is that of its data."""
    body = {"model": MODEL, "input": "Hi", "stream": True, **fields}
    sent = http(scripted.backend, lambda c: c.post("/v1/responses", json=body))
    assert sent.status_code == 200, sent.text
    found = []
    for block in sent.text.split("\n\n"):
        if not block:
            continue
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def whole(scripted: Scripted, **fields: Any) -> dict[str, Any]:
    body = {"model": MODEL, "input": "Hi", **fields}
    sent = http(scripted.backend, lambda c: c.post("/v1/responses", json=body))
    assert sent.status_code == 200, sent.text
    found: dict[str, Any] = sent.json()
    return found


def rebuilt(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items that a client puts together from deltas."""
    items: dict[int, dict[str, Any]] = {}
    for event in events:
        match event["type"]:
            case "response.output_item.added":
                assert event["output_index"] == len(items)
                items[event["output_index"]] = json.loads(json.dumps(event["item"]))
            case "response.content_part.added":
                items[event["output_index"]]["content"].append(dict(event["part"]))
            case "response.output_text.delta" | "response.reasoning_text.delta":
                part = items[event["output_index"]]["content"][event["content_index"]]
                part["text"] += event["delta"]
                if "logprobs" in event:
                    part["logprobs"] = part["logprobs"] + event["logprobs"]
            case "response.function_call_arguments.delta":
                items[event["output_index"]]["arguments"] += event["delta"]
            case "response.output_item.done":
                items[event["output_index"]]["status"] = event["item"]["status"]
                assert items[event["output_index"]] == event["item"]
    return [items[index] for index in sorted(items)]


def test_a_text_answer(scripted: Scripted) -> None:
    answer = sdk(
        scripted,
        lambda c: c.responses.create(
            model=MODEL, input="Hi", instructions="Be brief.", metadata={"a": "b"}, temperature=0.5
        ),
    )
    assert (answer.output_text, answer.status, answer.object) == ("Hello!", "completed", "response")
    assert answer.id.startswith("resp_") and answer.output[0].id.startswith("msg_")
    assert (answer.instructions, answer.metadata) == ("Be brief.", {"a": "b"})
    assert (answer.temperature, answer.store, answer.previous_response_id) == (0.5, False, None)
    assert answer.usage.output_tokens == 7
    assert answer.usage.total_tokens == answer.usage.input_tokens + 7
    prompt = scripted.encoder.tokenizer.decode(scripted.engine.submits[0].token_ids)
    assert prompt.startswith("Be brief.")


def test_the_answer_is_what_the_sdk_says_it_is(scripted: Scripted) -> None:
    scripted.replies = ["hm</think>" + CALLS]
    scripted.engine.cached_tokens = 3
    answer = Response.model_validate(whole(scripted, tools=TOOLS, **THINKING), strict=True)
    assert [item.type for item in answer.output] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    assert answer.usage is not None
    assert answer.usage.input_tokens_details.cached_tokens == 3
    assert answer.usage.output_tokens_details.reasoning_tokens == len("hm")


@pytest.mark.parametrize("step_tokens", [1, 7, 1000])
def test_every_event_is_one_of_the_sdks(scripted: Scripted, step_tokens: int) -> None:
    scripted.replies, scripted.engine.step_tokens = ["hm</think>" + CALLS], step_tokens
    events = raw_events(scripted, tools=TOOLS, **THINKING)
    for event in events:
        EVENT.validate_python(event, strict=True)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    order = [e["type"].removeprefix("response.") for e in events if "delta" not in e["type"]]
    text = ["output_item.added", "content_part.added", "TEXT", "content_part.done"]
    call = ["output_item.added", "function_call_arguments.done"]
    assert order == [
        "created",
        "in_progress",
        *(name.replace("TEXT", "reasoning_text.done") for name in text),
        "output_item.done",
        *(name.replace("TEXT", "output_text.done") for name in text),
        "output_item.done",
        *call,
        "output_item.done",
        *call,
        "output_item.done",
        "completed",
    ]


def test_the_accumulator_of_the_sdk_sees_what_was_said(scripted: Scripted) -> None:
    scripted.replies = ["a date</think>" + CALLS]
    scripted.engine.step_tokens = 3

    async def use(client: AsyncOpenAI) -> Any:
        async with client.responses.stream(
            model=MODEL, input="Hi", tools=TOOLS, reasoning={"effort": "high"}
        ) as stream:
            seen = [event.type async for event in stream]
            return seen, await stream.get_final_response()

    seen, final = sdk(scripted, use)
    assert "response.function_call_arguments.delta" in seen
    thought, message, first, second = final.output
    assert thought.content[0].text == "a date" and thought.summary == []
    assert message.content[0].text == final.output_text == "Let me see."
    assert (first.name, first.arguments) == ("get_date", "{}")
    assert (second.name, second.arguments) == ("add", '{"a": 1}')
    assert first.call_id.startswith("call_") and first.call_id != second.call_id


def test_a_typed_answer_is_parsed(scripted: Scripted) -> None:
    class City(BaseModel):
        name: str
        people: int

    scripted.replies = ['{"name": "Paris", "people": 2100000}']
    answer = sdk(scripted, lambda c: c.responses.parse(model=MODEL, input="?", text_format=City))
    assert answer.output_parsed == City(name="Paris", people=2_100_000)
    assert scripted.engine.submits[0].grammar is not None


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "name": "add"}], ids=["any", "named"]
)
def test_a_forced_call(scripted: Scripted, choice: Any) -> None:
    scripted.replies = [CALLS[CALLS.index("<｜DSML｜function_calls>") :]]
    answer = sdk(
        scripted,
        lambda c: c.responses.create(model=MODEL, input="?", tools=TOOLS, tool_choice=choice),
    )
    assert [item.type for item in answer.output] == ["function_call", "function_call"]
    assert scripted.engine.submits[0].grammar is not None
    assert answer.tool_choice == choice or answer.tool_choice.name == "add"


def test_the_output_can_be_sent_back_as_it_came(scripted: Scripted) -> None:
    scripted.replies = ["hm</think>" + CALLS]

    async def use(client: AsyncOpenAI) -> Any:
        items: list[Any] = [{"role": "user", "content": "What day is it?"}]
        more: Any = {"model": MODEL, "tools": TOOLS, "store": False, **THINKING}
        first = await client.responses.create(input=items, **more)
        items += [item.model_dump(exclude_unset=True) for item in first.output]
        items += [
            {"type": "function_call_output", "call_id": item.call_id, "output": "4"}
            for item in reversed(first.output)
            if item.type == "function_call"
        ]
        scripted.replies = ["so</think>Monday."]
        return await client.responses.create(input=items, **more)

    second = sdk(scripted, use)
    assert second.output_text == "Monday."
    one, two = scripted.engine.submits
    said = one.token_ids + scripted.tokens("hm</think>" + CALLS)
    assert two.token_ids[: len(said)] == said


def test_a_cut_answer_is_incomplete(scripted: Scripted) -> None:
    scripted.replies, scripted.ends = ["hm</think>Hel"], False
    answer = whole(scripted, **THINKING)
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in answer["output"]] == ["completed", "incomplete"]
    scripted.replies = ["hm"]
    (thought,) = whole(scripted, **THINKING)["output"]
    assert (thought["type"], thought["status"]) == ("reasoning", "incomplete")


@pytest.mark.parametrize("ends", [False, True])
def test_a_call_that_was_not_finished_says_so(scripted: Scripted, ends: bool) -> None:
    cut = CALLS[: CALLS.index("1</")]
    scripted.replies, scripted.ends = [cut], ends
    events = raw_events(scripted, tools=TOOLS)
    last = events[-1]["response"]
    calls = [item for item in last["output"] if item["type"] == "function_call"]
    assert [call["status"] for call in calls] == ["completed", "incomplete"]
    with pytest.raises(json.JSONDecodeError):
        json.loads(calls[1]["arguments"])
    assert last["status"] == ("completed" if ends else "incomplete")
    done = [e for e in events if e["type"] == "response.function_call_arguments.done"]
    assert len(done) == 1
    # And what never was a call can be sent back without harm.
    items = [{"role": "user", "content": "Hi"}, *last["output"]]
    items.append({"type": "function_call_output", "call_id": calls[0]["call_id"], "output": "a"})
    items.append({"type": "function_call_output", "call_id": calls[1]["call_id"], "output": "bad"})
    assert whole(scripted, input=items, tools=TOOLS)["object"] == "response"

    async def use(client: AsyncOpenAI) -> Any:
        async with client.responses.stream(model=MODEL, input="Hi", tools=TOOLS) as stream:
            return [event.type async for event in stream][-1]

    assert sdk(scripted, use) == ("response.completed" if ends else "response.incomplete")


def test_an_empty_answer_is_an_empty_message(scripted: Scripted) -> None:
    scripted.replies = [""]
    (item,) = whole(scripted)["output"]
    assert (item["type"], item["content"][0]["text"]) == ("message", "")


def test_logprobs_come_when_they_are_included(scripted: Scripted) -> None:
    scripted.replies = ["hé!"]
    more: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    events = raw_events(scripted, **more)
    part = events[-1]["response"]["output"][0]["content"][0]
    assert [entry["bytes"] for entry in part["logprobs"]] == [[b] for b in "hé!".encode()]
    assert part["logprobs"][0]["top_logprobs"][0]["logprob"] == -0.5
    assert rebuilt(events) == events[-1]["response"]["output"]
    assert whole(scripted)["output"][0]["content"][0]["logprobs"] == []


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    reply=st.sampled_from(
        ["", "Hi é😀", "hm</think>", "hm</think>Hi" + CALLS, CALLS, CALLS[:-40], CALLS[:120]]
    ),
    step_tokens=st.integers(1, 40),
    ends=st.booleans(),
    thinking=st.booleans(),
    stop=st.sampled_from([None, "see"]),
)
def test_streamed_equals_whole(
    scripted: Scripted, reply: str, step_tokens: int, ends: bool, thinking: bool, stop: str | None
) -> None:
    scripted.replies, scripted.ends = [reply or "a"], ends
    scripted.engine.step_tokens = step_tokens
    fields: dict[str, Any] = {"tools": TOOLS, "stop": stop, **(THINKING if thinking else {})}

    async def run(stream: bool) -> Any:
        body = {"model": MODEL, "input": "Hi", "stream": stream, **fields}
        turn = await scripted.service.start(
            msgspec.json.encode(body), read=read_responses_request, id_prefix="resp_"
        )
        async with turn:
            response = ResponseTurn(turn)
            if stream:
                return [msgspec.to_builtins(event) async for event in response.events()]
            return msgspec.to_builtins(await response.response())

    events, answer = asyncio.run(run(True)), asyncio.run(run(False))
    last = events[-1]["response"]
    assert rebuilt(events) == last["output"]
    assert (last["status"], last["usage"]) == (answer["status"], answer["usage"])
    ids = {"id", "call_id"}
    assert [{k: v for k, v in item.items() if k not in ids} for item in last["output"]] == [
        {k: v for k, v in item.items() if k not in ids} for item in answer["output"]
    ]


def test_an_engine_that_dies_fails_the_response(scripted: Scripted) -> None:
    async def use(client: AsyncOpenAI) -> list[Any]:
        stream = await client.responses.create(model=MODEL, input="Hi", stream=True)
        seen = []
        async for event in stream:
            seen.append(event)
        return seen

    script = scripted.engine.script

    def dying(submit: Any, choice: int) -> list[int]:
        tokens = script(submit, choice)
        scripted.engine.death = "out of memory"
        return tokens

    scripted.engine.script = dying
    events = sdk(scripted, use)
    assert events[-1].type == "response.failed"
    assert "out of memory" in events[-1].response.error.message
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert scripted.engine.open == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_0"}, "previous_response_id"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x" * 9000}, "input"),
        ({"input": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}, None),
        (
            {
                "input": [
                    {"role": "user", "content": "a"},
                    {"type": "function_call_output", "call_id": "c", "output": ""},
                ]
            },
            "input[1].role",
        ),
    ],
)
def test_refusals_are_the_sdks_exceptions(
    scripted: Scripted, fields: dict[str, Any], param: str | None
) -> None:
    wanted: Any = {"model": MODEL, "input": "Hi", **fields}
    with pytest.raises(openai.BadRequestError) as caught:
        sdk(scripted, lambda c: c.responses.create(**wanted))
    assert caught.value.param == (param or "input[1].role")


def test_nothing_is_stored(scripted: Scripted) -> None:
    async def run(client: httpx.AsyncClient) -> int:
        made = await client.post("/v1/responses", json={"model": MODEL, "input": "Hi"})
        return (await client.get(f"/v1/responses/{made.json()['id']}")).status_code

    assert http(scripted.backend, run) == 404

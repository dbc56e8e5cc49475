"""api.responses.history: items to messages, and the item each refusal names."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from api.errors import ApiError
from api.responses.history import Conversation, read_input
from api.responses.schema import ItemParam

HI: Any = {"role": "user", "content": "Hi"}


def read(items: Any, instructions: str | None = None) -> Conversation:
    return read_input(instructions, msgspec.convert(items, str | list[ItemParam]))


def call(call_id: str, **fields: Any) -> dict[str, Any]:
    return {
        "type": "function_call",
        "call_id": call_id,
        "name": "f",
        "arguments": '{"a": 1}',
        **fields,
    }


def result(call_id: str, output: Any = "4") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": output}


def thought(text: str) -> dict[str, Any]:
    return {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": text}],
    }


def said(text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "content": [part],
    }


def test_a_text_is_a_user_message() -> None:
    found = read("Hi", "Be brief.")
    assert found.messages == [{"role": "system", "content": "Be brief."}, HI]
    assert found.paths == ["instructions", "input[0]"]


def test_a_tool_loop_becomes_messages() -> None:
    found = read(
        [
            {"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
            HI,
            thought("hm"),
            said("Let me see."),
            call("c1"),
            call("c2", arguments=""),
            result("c1"),
            result(
                "c2", [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
            ),
            thought("so"),
            said("Four."),
        ]
    )
    system, user, assistant, one, two, answer = found.messages
    assert system == {"role": "developer", "content": "Be brief."}
    assert user == HI
    assert assistant == {
        "role": "assistant",
        "reasoning_content": "hm",
        "content": "Let me see.",
        "tool_calls": [
            {"id": "c1", "function": {"name": "f", "arguments": '{"a": 1}'}},
            {"id": "c2", "function": {"name": "f", "arguments": "{}"}},
        ],
    }
    assert one == {"role": "tool", "tool_call_id": "c1", "content": "4"}
    assert two == {"role": "tool", "tool_call_id": "c2", "content": "ab"}
    assert answer == {"role": "assistant", "reasoning_content": "so", "content": "Four."}
    assert found.paths == [f"input[{place}]" for place in (0, 1, 2, 6, 7, 8)]


def test_messages_of_their_own_stay_apart() -> None:
    found = read([HI, said("a"), said("b"), thought("c"), thought("d"), said("e")])
    assert found.messages[1:] == [
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "assistant", "reasoning_content": "cd", "content": "e"},
    ]


def test_text_after_a_call_belongs_to_it() -> None:
    found = read([HI, call("c"), said("There."), result("c")])
    assert [message["role"] for message in found.messages] == ["user", "assistant", "tool"]
    assert found.messages[1]["content"] == "There."


def test_reasoning_without_its_text_says_nothing() -> None:
    empty = {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "x"}
    assert read([HI, empty, said("a")]).messages[1] == {"role": "assistant", "content": "a"}


def test_a_call_the_model_never_finished_is_left_out() -> None:
    broken = call("c1", arguments='{"a": 1', status="incomplete")
    found = read([HI, broken, call("c2"), result("c1", "bad JSON"), result("c2")])
    assert [call["id"] for call in found.messages[1]["tool_calls"]] == ["c2"]
    assert [m.get("tool_call_id") for m in found.messages] == [None, None, "c2"]


@pytest.mark.parametrize(
    ("items", "param"),
    [
        ([], "input"),
        ([HI, {"type": "item_reference", "id": "x"}], "input[1].type"),
        ([{"type": "computer_call"}], "input[0].type"),
        ([{"content": "a"}], "input[0].role"),
        ([{"role": "user"}], "input[0].content"),
        ([{"role": "user", "content": [{"type": "input_image"}]}], "input[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "input_text"}]}], "input[0].content[0].text"),
        ([HI, call("")], "input[1].call_id"),
        ([HI, call("c", name=None)], "input[1].name"),
        ([HI, call("c", arguments="[1]")], "input[1].arguments"),
        ([HI, call("c", arguments='{"a": 1')], "input[1].arguments"),
        ([HI, call("c"), result("")], "input[2].call_id"),
        ([HI, call("c"), result("c", [{"type": "input_file"}])], "input[2].output[0].type"),
    ],
)
def test_refusals_name_the_item(items: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        read(items)
    assert (caught.value.status, caught.value.param) == (400, param)

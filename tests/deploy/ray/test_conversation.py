"""deploy.ray.conversation: what two requests have in common is what their prompts have."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.ray.conversation import MOST_BLOCKS, blocks_of

USER = {"role": "user", "content": "What day is it?"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_date", "arguments": "{}"}}
STEP = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "Monday"}
TOOL = {"type": "function", "function": {"name": "get_date"}}


def keys(request: Any, **headers: str) -> list[bytes]:
    return [block.key for block in blocks_of(headers, json.dumps(request).encode())]


def chat(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": list(messages), **fields}


def in_common(one: list[bytes], two: list[bytes]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), len(one))


def test_a_longer_conversation_begins_with_the_shorter() -> None:
    short, long = keys(chat(USER)), keys(chat(USER, STEP, RESULT))
    assert len(short) == 1
    assert long[:1] == short
    assert len(long) == 3


def test_what_clients_change_when_they_send_a_message_again_changes_nothing() -> None:
    thought = STEP | {"reasoning_content": "Let me look."}
    assert keys(chat(USER, thought, RESULT)) == keys(chat(USER, STEP, RESULT))
    cached = {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": "x"}
    marked = {"role": "assistant", "content": [thinking, cached]}
    plain = {"role": "assistant", "content": [{"text": "Hi", "type": "text"}]}
    assert keys(chat(USER, marked)) == keys(chat(USER, plain))
    items = {"input": [USER, {"type": "reasoning", "summary": []}, RESULT]}
    assert keys(items) == keys({"input": [USER, RESULT]})


@pytest.mark.parametrize(
    "other",
    [
        chat(USER, user_id="anna"),
        chat(USER, cache_salt="x"),
        chat(USER, metadata={"user_id": "anna"}),
        chat(USER) | {"model": "another"},
        chat(USER, tools=[TOOL]),
        chat(USER, system="Be brief."),
    ],
)
def test_another_cache_or_beginning_has_nothing_in_common(other: dict[str, Any]) -> None:
    assert in_common(keys(chat(USER)), keys(other)) == 0


def test_another_key_has_nothing_in_common() -> None:
    mine = keys(chat(USER), authorization="Bearer sk-1")
    assert in_common(mine, keys(chat(USER), authorization="Bearer sk-2")) == 0
    assert in_common(mine, keys(chat(USER), **{"x-api-key": "sk-1"})) == 0
    assert mine == keys(chat(USER, temperature=1, stream=True), authorization="Bearer sk-1")


@pytest.mark.parametrize("field", ["prompt", "input"])
def test_text_that_grows_keeps_its_whole_blocks(field: str) -> None:
    text = "abcdefgh" * 1024
    one, two = keys({field: text}), keys({field: text + "more"})
    assert len(one) == 8
    assert in_common(one, two) == 8


def test_tokens_are_cut_by_size_and_not_one_by_one() -> None:
    one, two = keys({"prompt": [1000] * 1000}), keys({"prompt": [1000] * 2000})
    assert len(one) == 5
    assert in_common(one, two) == 4


def test_blocks_are_bounded() -> None:
    assert len(keys({"messages": [""] * (2 * MOST_BLOCKS)})) == MOST_BLOCKS


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"a"', b"\xff", b"[" * 100_000, b'{"messages":' + b"[" * 100_000]
)
def test_a_body_that_is_no_request_has_no_blocks(body: bytes) -> None:
    assert blocks_of({}, body) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["messages", "prompt", "tools", "metadata"]), JSON))
def test_any_json_has_blocks_and_always_the_same(request: dict[str, Any]) -> None:
    body = json.dumps(request).encode()
    blocks = blocks_of({}, body)
    assert blocks == blocks_of({}, json.dumps(json.loads(body), indent=1).encode())
    assert all(0 < block.size_bytes <= 1024 for block in blocks)


@given(st.lists(st.text(max_size=3000), max_size=5), st.text(max_size=3000))
def test_messages_that_are_appended_only_append_blocks(before: list[str], after: str) -> None:
    messages = [{"role": "user", "content": text} for text in before]
    one = keys(chat(*messages))
    two = keys(chat(*messages, {"role": "user", "content": after}))
    assert two[: len(one)] == one
    assert len(two) > len(one)

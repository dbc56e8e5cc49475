"""api.choice: pieces of an answer, token counts, stops and logprobs, through a scripted model."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.chat.encoding import Encoder
from api.chat.markers import DSML
from tests.api.scripted_engine import Scripted

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("get_date", "add")
]


def call(name: str, **arguments: str) -> str:
    """A call in the trained format."""
    parameters = "\n".join(
        f'<{DSML}parameter name="{key}" string="true">{value}</{DSML}parameter>'
        for key, value in arguments.items()
    )
    return f'<{DSML}invoke name="{name}">\n{parameters}\n</{DSML}invoke>'


def calls(*invokes: str) -> str:
    inside = "\n".join(invokes)
    return f"\n\n<{DSML}function_calls>\n{inside}\n</{DSML}function_calls>"


def test_plain_answer(scripted: Scripted) -> None:
    answer = asyncio.run(scripted.complete())
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hello!", "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert choice["logprobs"] is None


def test_every_sampled_token_counts_and_reasoning_ends_before_its_closer(
    scripted: Scripted,
) -> None:
    scripted.replies = ["abc</think>de"]
    answer = asyncio.run(scripted.complete(thinking={"type": "enabled"}))
    message = answer["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("abc", "de")
    usage = answer["usage"]
    # a b c </think> d e EOS
    assert usage["completion_tokens"] == 7
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 3}
    assert usage["total_tokens"] == usage["prompt_tokens"] + 7


def test_cached_tokens_are_reported_in_both_dialects(scripted: Scripted) -> None:
    scripted.engine.cached_tokens = 4
    usage = asyncio.run(scripted.complete())["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 4}
    assert usage["prompt_cache_hit_tokens"] == 4
    assert usage["prompt_cache_miss_tokens"] == usage["prompt_tokens"] - 4


def test_an_answer_cut_in_its_reasoning_is_all_reasoning(scripted: Scripted) -> None:
    scripted.replies, scripted.ends = ["abc é"], False
    answer = asyncio.run(scripted.complete(reasoning_effort="low"))
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["reasoning_content"] == "abc é"
    assert choice["message"]["content"] == ""
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 6


def test_reasoning_that_never_closes_is_flagged(scripted: Scripted) -> None:
    scripted.replies = ["abc"]
    (choice,) = asyncio.run(scripted.complete(reasoning_effort="low"))["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["incomplete_reasoning"] is True


def test_parallel_calls(scripted: Scripted) -> None:
    scripted.replies = ["Let me see." + calls(call("get_date"), call("add", a="1", b='"2"'))]
    (choice,) = asyncio.run(scripted.complete(tools=TOOLS))["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    first, second = choice["message"]["tool_calls"]
    assert first["function"] == {"name": "get_date", "arguments": "{}"}
    assert json.loads(second["function"]["arguments"]) == {"a": "1", "b": '"2"'}
    assert first["id"] != second["id"]


def test_content_is_null_beside_calls_only(scripted: Scripted) -> None:
    scripted.replies = [calls(call("get_date"))]
    (choice,) = asyncio.run(scripted.complete(tools=TOOLS))["choices"]
    assert choice["message"]["content"] is None


def test_one_call_at_a_time_stops_the_engine(scripted: Scripted) -> None:
    scripted.replies = [calls(call("get_date"), call("add", a="1"))]
    answer = asyncio.run(scripted.complete(tools=TOOLS, parallel_tool_calls=False))
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert [c["function"]["name"] for c in choice["message"]["tool_calls"]] == ["get_date"]
    ((_, number, at_token),) = scripted.engine.stops
    assert (number, at_token) == (0, answer["usage"]["completion_tokens"])
    assert at_token < len(scripted.tokens(scripted.replies[0]))


def test_a_forbidden_call_is_kept_from_being_written(scripted: Scripted) -> None:
    asyncio.run(scripted.complete(tools=TOOLS, tool_choice="none"))
    (submit,) = scripted.engine.submits
    assert submit.sampling.logit_bias == {scripted.encoder.dsml_token_id: -100.0}
    asyncio.run(scripted.complete(tools=TOOLS))
    assert scripted.engine.submits[1].token_ids == submit.token_ids
    assert scripted.engine.submits[1].sampling.logit_bias == {}


def test_an_unfinished_call_is_never_handed_out(scripted: Scripted) -> None:
    whole = calls(call("get_date"), call("add", a="1"))
    scripted.replies, scripted.ends = [whole[: whole.index("1</") + 1]], False
    (choice,) = asyncio.run(scripted.complete(tools=TOOLS))["choices"]
    assert choice["finish_reason"] == "length"
    assert [c["function"]["name"] for c in choice["message"]["tool_calls"]] == ["get_date"]


def test_a_broken_call_becomes_content_and_is_reported(scripted: Scripted) -> None:
    block = calls(f'<{DSML}invoke name="add">\nnonsense\n</{DSML}invoke>')
    scripted.replies = ["Well." + block]
    (choice,) = asyncio.run(scripted.complete(tools=TOOLS))["choices"]
    assert choice["finish_reason"] == "stop"
    assert "tool_calls" not in choice["message"]
    assert "nonsense" in choice["message"]["content"]
    assert choice["parse_error"]["offset"] >= len("Well.")


@pytest.mark.parametrize("step_tokens", [1, 3, 1000])
@pytest.mark.parametrize(
    ("reply", "content", "tokens"),
    [("one STOP two", "one ", 8), ("one STO two", "one STO two", 12), ("STOP", "", 4)],
)
def test_stop_strings_cut_content(
    scripted: Scripted, reply: str, content: str, tokens: int, step_tokens: int
) -> None:
    scripted.replies = [reply]
    scripted.engine.step_tokens = step_tokens
    answer = asyncio.run(scripted.complete(stop=["STOP", "nope"]))
    (choice,) = answer["choices"]
    assert choice["message"]["content"] == content
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == tokens


def test_stop_strings_leave_reasoning_and_calls_alone(scripted: Scripted) -> None:
    scripted.replies = ["a STOP</think>b" + calls(call("add", a="STOP"))]
    answer = asyncio.run(scripted.complete(stop="STOP", tools=TOOLS, thinking={"type": "enabled"}))
    message = answer["choices"][0]["message"]
    assert message["reasoning_content"] == "a STOP"
    assert message["content"] == "b"
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"a": "STOP"}


def text_of(entries: list[dict[str, Any]]) -> str:
    return bytes(byte for entry in entries for byte in entry["bytes"]).decode()


def test_logprobs_of_every_token_stand_with_its_part(scripted: Scripted) -> None:
    scripted.replies = ["why é</think>fine\n\n \U0001f33e" + calls(call("get_date"))]
    fields: dict[str, Any] = {"logprobs": True, "tools": TOOLS, "reasoning_effort": "high"}
    answer = asyncio.run(scripted.complete(**fields, top_logprobs=1))
    logprobs = answer["choices"][0]["logprobs"]
    assert text_of(logprobs["reasoning_content"]) == "why é</think>"
    assert text_of(logprobs["content"]) == "fine\n\n \U0001f33e" + calls(call("get_date"))
    entries = logprobs["content"] + logprobs["reasoning_content"]
    assert len(entries) == answer["usage"]["completion_tokens"] - 1  # all but the end token
    assert entries[0]["top_logprobs"][0]["logprob"] == -0.5


def test_streamed_logprobs_come_with_their_text(scripted: Scripted) -> None:
    scripted.replies = ["a\n\nb <｜c é"]
    chunks = asyncio.run(scripted.stream(logprobs=True))
    sent = ""
    for chunk in chunks:
        (choice,) = chunk["choices"]
        content = choice["delta"].get("content", "")
        if choice["logprobs"] is not None and choice["finish_reason"] is None:
            assert text_of(choice["logprobs"]["content"]) == content
        sent += content
    assert sent == scripted.replies[0]


def test_logprobs_end_where_a_stop_string_begins(scripted: Scripted) -> None:
    scripted.replies = ["one STOP"]
    (choice,) = asyncio.run(scripted.complete(stop="STOP", logprobs=True))["choices"]
    assert text_of(choice["logprobs"]["content"]) == choice["message"]["content"] == "one "


@pytest.mark.parametrize("step_tokens", [1, 2, 5, 1000])
def test_streamed_and_whole_answers_agree(scripted: Scripted, step_tokens: int) -> None:
    scripted.replies = ["hm</think>Two \U0001f33e things.\n" + calls(call("add", a="x<y", b="é\n"))]
    scripted.engine.step_tokens = step_tokens
    fields: dict[str, Any] = {"tools": TOOLS, "thinking": {"type": "enabled"}, "logprobs": True}
    (whole,) = asyncio.run(scripted.complete(**fields))["choices"]
    deltas = [chunk["choices"][0] for chunk in asyncio.run(scripted.stream(**fields))]

    def joined(name: str) -> str:
        return "".join(delta["delta"].get(name) or "" for delta in deltas)

    assert joined("content") == whole["message"]["content"]
    assert joined("reasoning_content") == whole["message"]["reasoning_content"]
    parts = [part for delta in deltas for part in delta["delta"].get("tool_calls") or ()]
    arguments = "".join(part["function"]["arguments"] for part in parts)
    assert arguments == whole["message"]["tool_calls"][0]["function"]["arguments"]
    assert [part["function"]["name"] for part in parts if "id" in part] == ["add"]
    assert [delta["finish_reason"] for delta in deltas][-1] == whole["finish_reason"]
    entries = [e for delta in deltas for e in (delta["logprobs"] or {}).get("content", ())]
    assert entries == whole["logprobs"]["content"]


PIECES = [
    "a",
    "é",
    "\U0001f33e",
    "\n",
    "\n\n",
    "<",
    " STOP",
    "</think>",
    f"<{DSML}",
    calls(call("add", a="1")),
]


@given(st.lists(st.sampled_from(PIECES), max_size=8), st.integers(2, 9), st.booleans())
@settings(max_examples=80, deadline=None)
def test_tokens_that_come_alone_are_read_as_those_that_come_together(
    encoder: Encoder, pieces: list[str], step_tokens: int, thinking: bool
) -> None:
    """Alone, plain ones take a short way, unless their log-probabilities are wanted."""
    fields: dict[str, Any] = {
        "tools": TOOLS,
        "thinking": {"type": "enabled" if thinking else "disabled"},
    }
    found = []
    for together, logprobs in ((1, False), (1, True), (step_tokens, False)):
        scripted = Scripted(encoder)
        scripted.replies, scripted.engine.step_tokens = ["".join(pieces)], together
        answer = asyncio.run(scripted.complete(**fields, logprobs=logprobs))
        (choice,) = answer["choices"]
        choice.pop("logprobs")
        for made in choice["message"].get("tool_calls", ()):
            made.pop("id")
        found.append((choice, answer["usage"]))
    assert found[0] == found[1] == found[2]


@given(st.lists(st.sampled_from(PIECES), max_size=8), st.integers(1, 9), st.booleans())
@settings(max_examples=80, deadline=None)
def test_whatever_the_model_says_every_token_has_one_entry(
    encoder: Encoder, pieces: list[str], step_tokens: int, thinking: bool
) -> None:
    scripted = Scripted(encoder)
    scripted.replies = ["".join(pieces)]
    scripted.engine.step_tokens = step_tokens
    fields: dict[str, Any] = {"tools": TOOLS, "logprobs": True}
    answer = asyncio.run(
        scripted.complete(**fields, thinking={"type": "enabled" if thinking else "disabled"})
    )
    (choice,) = answer["choices"]
    tokens = scripted.tokens(scripted.replies[0])
    assert answer["usage"]["completion_tokens"] == len(tokens)
    logprobs = choice["logprobs"] or {"content": []}
    reasoning = logprobs.get("reasoning_content", [])
    assert len(logprobs["content"]) + len(reasoning) == len(tokens) - 1
    counted = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    closer = sum(bytes(entry["bytes"]) == b"</think>" for entry in reasoning)
    assert counted == len(reasoning) - closer
    text = text_of(reasoning).removesuffix("</think>")
    assert text == choice["message"].get("reasoning_content", "")

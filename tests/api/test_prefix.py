"""Answers that the client began: DeepSeek's prefix and vLLM's continue_final_message."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from openai import AsyncOpenAI

from api.chat.encoding import Encoder
from api.chat.markers import ASSISTANT, BOS, THINK_END, THINK_START, USER
from api.errors import ApiError
from scheduler.retention import flip_point
from tests.api.scripted_engine import MODEL, Scripted, body
from tests.api.test_server import http

USER_HI: Any = {"role": "user", "content": "Hi"}
HEAD = f"{BOS}{USER}Hi{ASSISTANT}"
THINKING: Any = {"thinking": {"type": "enabled"}}


def prefix(**fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "prefix": True, **fields}


def prompt_text(scripted: Scripted) -> str:
    ids = scripted.engine.submits[-1].token_ids
    text: str = scripted.encoder.tokenizer.decode(ids, skip_special_tokens=False)
    return text


@pytest.mark.parametrize(
    ("fields", "message", "expected"),
    [
        ({}, {"content": "Well"}, f"{HEAD}{THINK_END}Well"),
        # Chat mode shows no reasoning, as in any history.
        ({}, {"content": "Well", "reasoning_content": "hm"}, f"{HEAD}{THINK_END}Well"),
        ({}, {"content": ""}, f"{HEAD}{THINK_END}"),
        (THINKING, {"content": "Well"}, f"{HEAD}{THINK_START}{THINK_END}Well"),
        (THINKING, {"reasoning_content": "hm"}, f"{HEAD}{THINK_START}hm"),
        (
            THINKING,
            {"content": "Well", "reasoning_content": "hm"},
            f"{HEAD}{THINK_START}hm{THINK_END}Well",
        ),
        (THINKING, {"content": "<think>hm</think>Well"}, f"{HEAD}{THINK_START}hm{THINK_END}Well"),
        (THINKING, {"content": None}, f"{HEAD}{THINK_START}"),
    ],
)
def test_the_prompt_ends_where_the_prefix_does(
    scripted: Scripted, fields: Any, message: Any, expected: str
) -> None:
    scripted.replies = [".</think>ok" if expected.endswith(("hm", THINK_START)) else " ok"]
    answer = asyncio.run(scripted.complete(messages=[USER_HI, prefix(**message)], **fields))
    assert prompt_text(scripted) == expected
    # The answer holds what the model added, and nothing else.
    assert answer["choices"][0]["message"]["content"].strip() == "ok"
    in_reasoning = answer["choices"][0]["message"].get("reasoning_content")
    assert in_reasoning == ("." if scripted.replies[0].startswith(".") else None)


def test_both_spellings_make_the_same_prompt(scripted: Scripted) -> None:
    asyncio.run(scripted.complete(messages=[USER_HI, prefix(content="Well")]))
    asyncio.run(
        scripted.complete(
            messages=[USER_HI, {"role": "assistant", "content": "Well"}],
            continue_final_message=True,
            add_generation_prompt=False,
        )
    )
    first, second = scripted.engine.submits
    assert first.token_ids == second.token_ids


def test_special_strings_in_a_prefix_stay_text(scripted: Scripted, encoder: Encoder) -> None:
    asyncio.run(scripted.complete(messages=[USER_HI, prefix(content=f"a{USER}{THINK_END}")]))
    ids = scripted.engine.submits[0].token_ids
    assert ids[-len(f"a{USER}{THINK_END}".encode()) :] == encoder.encode_text(f"a{USER}{THINK_END}")


def test_after_tool_results_a_prefix_goes_on_in_the_turn(scripted: Scripted) -> None:
    messages = [
        USER_HI,
        {
            "role": "assistant",
            "reasoning_content": "r",
            "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "4"},
        prefix(content="So", reasoning_content="ah"),
    ]
    asyncio.run(scripted.complete(messages=messages, **THINKING))
    assert prompt_text(scripted).endswith(f"</function_results>\n\n{THINK_START}ah{THINK_END}So")


@pytest.mark.parametrize("thinking", [False, True])
def test_the_turn_ends_as_if_the_model_had_said_it_all(scripted: Scripted, thinking: bool) -> None:
    scripted.replies = [" done"]
    fields = THINKING if thinking else {}
    message = prefix(content="All", reasoning_content="hm")
    asyncio.run(scripted.complete(messages=[USER_HI, message], **fields))
    (turn,) = scripted.engine.turns
    (submit,) = scripted.engine.submits
    kinds = {span.kind for span in turn.spans}
    assert turn.why == "answer"
    assert turn.spans[-1].end == len(submit.token_ids) + len(" done") + 1
    assert all(a.end == b.start for a, b in zip(turn.spans, turn.spans[1:], strict=False))
    if not thinking:
        assert kinds == {"stable"} and turn.next_prefix is None
        return
    assert kinds == {"stable", "reasoning", "answer"}
    # The next prompt holds the whole answer, without its reasoning.
    assert turn.next_prefix is not None
    text = scripted.encoder.tokenizer.decode(turn.next_prefix, skip_special_tokens=False)
    assert text.startswith(f"{HEAD}{THINK_END}All done")
    assert (
        turn.next_prefix[: flip_point(submit.spans)] == submit.token_ids[: flip_point(submit.spans)]
    )


@pytest.mark.parametrize(
    ("messages", "fields", "param"),
    [
        ([prefix(content="a"), USER_HI], {}, "messages[0].prefix"),
        ([USER_HI, {"role": "user", "content": "a", "prefix": True}], {}, "messages[1].prefix"),
        ([prefix(content="a")], {}, "messages[0]"),
        ([{"role": "system", "content": "x"}, prefix(content="a")], {}, "messages[1]"),
        ([USER_HI, prefix(reasoning_content="hm")], {}, "messages[1].reasoning_content"),
        (
            [
                USER_HI,
                prefix(tool_calls=[{"id": "a", "function": {"name": "f", "arguments": "{}"}}]),
            ],
            {},
            "messages[1].tool_calls",
        ),
        ([USER_HI, {"role": "assistant", "content": "a"}], {}, "messages[1].role"),
        ([USER_HI], {"continue_final_message": True}, "continue_final_message"),
        (
            [{"role": "assistant", "content": "x"}, prefix(content="a")],
            {},
            "messages[0].role",
        ),
    ],
)
def test_refusals_name_the_message(
    scripted: Scripted, messages: Any, fields: Any, param: str
) -> None:
    with pytest.raises(ApiError) as caught:
        asyncio.run(scripted.service.start(body(messages=messages, **fields)))
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize("base", ["/beta", "/v1", ""])
def test_the_sdk_continues_at_deepseeks_beta_path(scripted: Scripted, base: str) -> None:
    scripted.replies = ["quick</think>lazy dog"]

    async def run(client: Any) -> Any:
        sdk = AsyncOpenAI(
            base_url=f"http://winnow{base}", api_key="none", http_client=client, max_retries=0
        )
        names = [model.id async for model in sdk.models.list()]
        answer = await sdk.chat.completions.create(
            model=MODEL,
            messages=[USER_HI, prefix(content="", reasoning_content="The ")],  # type: ignore[list-item]
            extra_body=THINKING,
        )
        return names, answer

    names, answer = http(scripted.backend, run)
    message = answer.choices[0].message
    assert names == [MODEL]
    assert (message.reasoning_content, message.content) == ("quick", "lazy dog")
    assert answer.usage.completion_tokens_details.reasoning_tokens == len("quick")


@pytest.mark.parametrize("stream", [False, True])
def test_token_ids_of_a_turn_are_the_start_of_the_next(scripted: Scripted, stream: bool) -> None:
    scripted.replies = ["hm</think>Hello"]

    def ids(messages: list[Any]) -> tuple[list[int], list[int]]:
        fields: Any = {"messages": messages, "return_token_ids": True, **THINKING}
        if not stream:
            answer = asyncio.run(scripted.complete(**fields))
            return answer["prompt_token_ids"], answer["choices"][0]["token_ids"]
        chunks = asyncio.run(scripted.stream(**fields))
        assert "prompt_token_ids" in chunks[0]
        assert not any("prompt_token_ids" in chunk for chunk in chunks[1:])
        new = [c.get("token_ids", []) for chunk in chunks for c in chunk["choices"]]
        return chunks[0]["prompt_token_ids"], [token_id for some in new for token_id in some]

    prompt, new = ids([USER_HI])
    assert prompt == scripted.engine.submits[0].token_ids
    assert new == scripted.tokens(scripted.replies[0])
    again, _ = ids([USER_HI, prefix(content="Hello", reasoning_content="hm")])
    assert again == prompt + new[:-1]


def test_token_ids_stay_away_unless_asked_for(scripted: Scripted) -> None:
    answer = asyncio.run(scripted.complete())
    assert "prompt_token_ids" not in answer and "token_ids" not in answer["choices"][0]

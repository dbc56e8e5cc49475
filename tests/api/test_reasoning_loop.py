"""A tool loop of a client that loses all reasoning, with the real engine behind a real server.

A random model is made to think and call three times: its tokens are those no tokenizer would write.
The embedded model decides how many steps it takes; what is asserted holds for every step it takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.api.server_process import ServerProcess

RANDOM_MODEL, MODEL = "deepseek-random", "deepseek-v3.2-tiny"
PAGE_TOKENS = 64
MOST_STEPS = 5
RESULTS = {"find_city": "Paris", "get_weather": "sunny"}
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "find_city",
            "description": "Find the city where a person lives",
            "parameters": {"type": "object", "properties": {"name": {"type": "string"}}},
        },
    },
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather in a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    },
]


LOOK: Any = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {"where": {"enum": ["here", "there"]}},
            "required": ["where"],
        },
    },
}
THINKING_TOKENS = 70


@pytest.fixture(scope="module")
def embedded() -> Iterator[ServerProcess]:
    server = ServerProcess()
    yield server
    assert server.close() == 0


@pytest.mark.parametrize("one_call", [True, False])
def test_hits_grow_in_three_steps_without_any_reasoning(
    server: ServerProcess, one_call: bool
) -> None:
    messages: list[Any] = [{"role": "user", "content": "Where is it?"}]
    sequence: list[int] = []
    cached, restored = [], 0
    for step in range(4):
        request = {
            "model": RANDOM_MODEL,
            "messages": messages,
            "tools": [LOOK],
            "tool_choice": "required",
            "parallel_tool_calls": not one_call,
            "thinking": {"type": "enabled", "budget_tokens": THINKING_TOKENS},
            "seed": step,
            "max_tokens": 1500,
            "return_token_ids": True,
            "cache_salt": str(one_call),
        }
        response = httpx.post(f"{server.url}/v1/chat/completions", json=request, timeout=120)
        assert response.status_code == 200, response.text
        answer = response.json()
        (choice,), usage = answer["choices"], answer["usage"]
        assert choice["finish_reason"] == "tool_calls"
        assert answer["prompt_token_ids"][: len(sequence)] == sequence
        details = usage["prompt_tokens_details"]
        cached.append(details["cached_tokens"])
        least = max(0, len(sequence) - 1) // PAGE_TOKENS * PAGE_TOKENS
        # A choice that is cut after its call may have gone on, in the very words that follow.
        went_on = PAGE_TOKENS if one_call and sequence else 0
        assert least <= cached[-1] <= least + went_on
        assert details.get("restored_reasoning_tokens", 0) == restored
        restored += usage["completion_tokens_details"]["reasoning_tokens"]
        sequence = answer["prompt_token_ids"] + choice["token_ids"]
        calls = choice["message"]["tool_calls"]
        messages.append({"role": "assistant", "tool_calls": calls})
        messages += [{"role": "tool", "tool_call_id": c["id"], "content": "no"} for c in calls]
    assert restored > THINKING_TOKENS
    assert cached == sorted(set(cached)), "each step finds more than the one before"


@pytest.mark.parametrize(
    "question",
    ["In which city does Anna live?", "What is the weather where Anna lives?"],
)
def test_every_prompt_starts_with_all_that_was_sent_and_said(
    embedded: ServerProcess, question: str
) -> None:
    messages: list[Any] = [{"role": "user", "content": question}]
    sequence: list[int] = []
    cached = restored = steps = 0
    with openai.OpenAI(base_url=f"{embedded.url}/v1", api_key="none", max_retries=0) as client:
        while steps < MOST_STEPS:
            answer: Any = client.chat.completions.create(
                model=MODEL,
                messages=messages,
                tools=TOOLS,
                reasoning_effort="high",
                temperature=0,
                max_tokens=200,
                extra_body={"return_token_ids": True, "cache_salt": question},
            )
            usage, (choice,) = answer.usage, answer.choices
            assert answer.prompt_token_ids[: len(sequence)] == sequence
            # All but the last token, which was never computed, in whole pages.
            expected = max(0, len(sequence) - 1) // PAGE_TOKENS * PAGE_TOKENS
            assert usage.prompt_tokens_details.cached_tokens == expected >= cached
            cached = expected
            found = getattr(usage.prompt_tokens_details, "restored_reasoning_tokens", 0)
            assert found == restored
            sequence = answer.prompt_token_ids + choice.token_ids
            calls = choice.message.tool_calls
            if not calls:
                break
            steps += 1
            restored += usage.completion_tokens_details.reasoning_tokens
            messages.append({"role": "assistant", "tool_calls": [c.model_dump() for c in calls]})
            for call in calls:
                result = RESULTS[call.function.name]
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    assert steps > 0 and restored > 0, "the model called no tool with a thought"
    counts = httpx.get(f"{embedded.url}/server_info").json()["conversations"]["reasoning_store"]
    assert counts["turns"] >= steps and counts["missed_messages"] == 0
    assert counts["restored_tokens"] >= restored


def test_the_client_may_send_it_back_too(embedded: ServerProcess) -> None:
    messages: list[Any] = [{"role": "user", "content": "In which city does Anna live?"}]
    prompts = []
    with openai.OpenAI(base_url=f"{embedded.url}/v1", api_key="none", max_retries=0) as client:
        asked: Any = {"model": MODEL, "tools": TOOLS, "reasoning_effort": "high", "temperature": 0}
        asked["extra_body"] = {"return_token_ids": True}
        first: Any = client.chat.completions.create(messages=messages, max_tokens=200, **asked)
        message = first.choices[0].message
        (call,) = message.tool_calls
        result = {"role": "tool", "tool_call_id": call.id, "content": "Paris"}
        for said in (message.model_dump(), message.model_dump(exclude={"reasoning_content"})):
            answer: Any = client.chat.completions.create(
                messages=[*messages, said, result], max_tokens=2, **asked
            )
            prompts.append(answer.prompt_token_ids)
    assert prompts[0] == prompts[1]
    assert prompts[0][: first.usage.total_tokens] == first.prompt_token_ids + (
        first.choices[0].token_ids
    )


def test_an_anthropic_client_may_drop_its_thinking(embedded: ServerProcess) -> None:
    messages: list[Any] = [{"role": "user", "content": "In which city does Anna live?"}]
    function = TOOLS[0]["function"]
    tool = {k: function[k] for k in ("name", "description")}
    asked: Any = {
        "model": MODEL,
        "max_tokens": 200,
        "tools": [tool | {"input_schema": function["parameters"]}],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "extra_body": {"temperature": 0.0},
    }
    with anthropic.Anthropic(base_url=embedded.url, api_key="none", max_retries=0) as client:
        first = client.messages.create(messages=messages, **asked)
        thought, call = first.content
        assert (thought.type, call.type) == ("thinking", "tool_use")
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "Paris"}
        usages: list[Any] = []
        for content in (first.content, [call]):
            said = [
                {"role": "assistant", "content": content},
                {"role": "user", "content": [result]},
            ]
            usages.append(client.messages.create(messages=[*messages, *said], **asked).usage)
    with_it, without = usages
    total = [usage.input_tokens + usage.cache_read_input_tokens for usage in usages]
    assert total[0] == total[1], "as many tokens as with the thinking"
    assert without.restored_reasoning_tokens > 0
    assert not hasattr(with_it, "restored_reasoning_tokens")

"""litellm, as providers `deepseek/` and `hosted_vllm/`: each reshapes requests in its own way."""

from __future__ import annotations

from typing import Any

import litellm
import pytest
from live import (
    CHAT,
    FORCED,
    MODEL,
    OPENAI_TOOLS,
    PARALLEL,
    PARALLEL_ANSWER,
    THREE_STEPS_ANSWER,
    URL,
    answer_of,
    check_loop,
    check_new_turn,
    recorded,
    thought,
    three_steps,
)

pytestmark = pytest.mark.parametrize("provider", ["deepseek", "hosted_vllm"])


def ask(provider: str, messages: list[Any], **more: Any) -> Any:
    return litellm.completion(
        model=f"{provider}/{MODEL}",
        api_base=f"{URL}/v1",
        api_key="none",
        messages=messages,
        num_retries=0,
        **more,
    )


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def results_of(message: Any) -> list[Any]:
    return [
        {
            "role": "tool",
            "tool_call_id": called.id,
            "content": answer_of(called.function.arguments),
        }
        for called in message.tool_calls
    ]


def test_a_streamed_chat(provider: str) -> None:
    chunks = list(ask(provider, said(CHAT), stream=True, stream_options={"include_usage": True}))
    whole: Any = litellm.stream_chunk_builder(chunks)
    assert whole.choices[0].message.content == "Good morning, Anna! 😀"
    assert whole.choices[0].finish_reason == "stop" and whole.usage.completion_tokens > 0


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
def test_a_forced_tool(provider: str, choice: Any) -> None:
    answer = ask(provider, said(FORCED), tools=OPENAI_TOOLS, tool_choice=choice)
    (called,) = answer.choices[0].message.tool_calls
    assert (called.function.name, called.function.arguments) == ("weather", '{"city": "Paris"}')
    assert answer.choices[0].finish_reason == "tool_calls"


def test_two_tools_at_once_and_their_results_in_reverse(provider: str) -> None:
    messages = said(PARALLEL)
    chunks = list(ask(provider, messages, tools=OPENAI_TOOLS, stream=True))
    whole: Any = litellm.stream_chunk_builder(chunks)
    message = whole.choices[0].message
    assert len(message.tool_calls) == 2
    messages += [message.model_dump(), *results_of(message)[::-1]]
    answer = ask(provider, messages, tools=OPENAI_TOOLS)
    assert answer.choices[0].message.content == PARALLEL_ANSWER


@pytest.mark.parametrize("keeps_reasoning", [True, False])
def test_three_thinking_steps(provider: str, keeps_reasoning: bool) -> None:
    name = f"litellm {provider} {keeps_reasoning}"
    messages = said(three_steps(name))
    asked: Any = {"tools": OPENAI_TOOLS, "thinking": {"type": "enabled", "budget_tokens": 4096}}
    with recorded() as seen:
        while True:
            message = ask(provider, messages, **asked).choices[0].message
            assert message.reasoning_content.startswith("<Hm> & so on:\n1. I think about")
            if not message.tool_calls:
                break
            sent = message.model_dump()
            if not keeps_reasoning:
                del sent["reasoning_content"]
            messages += [sent, *results_of(message)]
        assert message.content == THREE_STEPS_ANSWER
        messages += [message.model_dump(), *said(CHAT)]
        ask(provider, messages, **asked)
    check_loop(seen[:-1])
    check_new_turn(seen, thought(name, "what to wear"))


def test_embedded(provider: str) -> None:
    """The checkpoint in the repository: a streamed chat, a tool loop."""
    chat = said("Anna lives in Paris. Where does Anna live?")
    whole: Any = litellm.stream_chunk_builder(list(ask(provider, chat, stream=True, temperature=0)))
    assert "Paris" in whole.choices[0].message.content
    messages = said("In which city does Anna live?")
    asked: Any = {
        "tools": OPENAI_TOOLS[:1],
        "temperature": 0,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    message = ask(provider, messages, **asked).choices[0].message
    (called,) = message.tool_calls
    result = {"role": "tool", "tool_call_id": called.id, "content": "Paris"}
    messages += [message.model_dump(), result]
    assert "Paris" in ask(provider, messages, **asked).choices[0].message.content

"""anthropic: streamed events, blocks, tool results beside text, token counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from live import (
    CHAT,
    DESCRIPTIONS,
    FORCED,
    FUNCTIONS,
    MODEL,
    PARALLEL,
    PARALLEL_ANSWER,
    THREE_STEPS_ANSWER,
    URL,
    answer_of,
    check_loop,
    check_new_turn,
    parameters,
    recorded,
    thought,
    three_steps,
)

TOOLS: Any = [
    {"name": name, "description": DESCRIPTIONS[name], "input_schema": parameters(name)}
    for name in FUNCTIONS
]
THINKING: Any = {"type": "enabled", "budget_tokens": 4096}


@pytest.fixture(params=["", "/anthropic"])
def client(request: pytest.FixtureRequest) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=URL + request.param, api_key="none", max_retries=0) as client:
        yield client


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def ask(client: anthropic.Anthropic, messages: list[Any], **more: Any) -> Any:
    """Returns the message that a stream adds up to."""
    with client.messages.stream(model=MODEL, max_tokens=8000, messages=messages, **more) as stream:
        return stream.get_final_message()


def results_of(message: Any) -> list[Any]:
    return [
        {"type": "tool_result", "tool_use_id": block.id, "content": answer_of(block.input)}
        for block in message.content
        if block.type == "tool_use"
    ]


def test_a_streamed_chat(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model=MODEL, max_tokens=100, messages=said(CHAT)) as stream:
        assert "".join(stream.text_stream) == "Good morning, Anna! 😀"
        assert stream.get_final_message().stop_reason == "end_turn"


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
@pytest.mark.parametrize("thinking", [False, True])
def test_a_forced_tool(client: anthropic.Anthropic, choice: Any, thinking: bool) -> None:
    more = {"thinking": THINKING} if thinking else {}
    message = ask(client, said(FORCED), tools=TOOLS, tool_choice=choice, **more)
    called = message.content[-1]
    assert (called.type, called.name, called.input) == ("tool_use", "weather", {"city": "Paris"})
    assert message.stop_reason == "tool_use"


def test_two_tools_at_once_and_their_results_in_reverse(client: anthropic.Anthropic) -> None:
    messages = said(PARALLEL)
    first = ask(client, messages, tools=TOOLS)
    assert [block.type for block in first.content] == ["text", "tool_use", "tool_use"]
    messages += [
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": results_of(first)[::-1]},
    ]
    assert ask(client, messages, tools=TOOLS).content[0].text == PARALLEL_ANSWER


@pytest.mark.parametrize("keeps_thinking", [True, False])
@pytest.mark.parametrize("reminder", [False, True])
def test_three_thinking_steps(
    client: anthropic.Anthropic, keeps_thinking: bool, reminder: bool
) -> None:
    name = f"anthropic {client.base_url.path} {keeps_thinking} {reminder}"
    messages = said(three_steps(name))
    with recorded() as seen:
        while True:
            message = ask(client, messages, tools=TOOLS, thinking=THINKING)
            if message.stop_reason != "tool_use":
                break
            assert message.content[0].type == "thinking" and message.content[0].signature
            kept = [b for b in message.content if keeps_thinking or b.type != "thinking"]
            blocks: list[Any] = results_of(message)
            if reminder:
                blocks.append({"type": "text", "text": "<system-reminder>Go on.</system-reminder>"})
            messages += [
                {"role": "assistant", "content": kept},
                {"role": "user", "content": blocks},
            ]
        if not reminder:  # the script quotes the whole result
            assert message.content[-1].text == THREE_STEPS_ANSWER
        messages += [{"role": "assistant", "content": message.content}, *said(CHAT)]
        ask(client, messages, tools=TOOLS, thinking=THINKING)
    check_loop(seen[:-1])
    check_new_turn(seen, thought(name, "what to wear"))


def test_tokens_are_counted_as_they_are_used(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=said(CHAT), tools=TOOLS)
    usage = ask(client, said(CHAT), tools=TOOLS).usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


def test_errors(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="claude", max_tokens=1, messages=said(CHAT))
    with pytest.raises(anthropic.BadRequestError, match="messages"):
        client.messages.create(model=MODEL, max_tokens=1, messages=[])


def test_embedded(client: anthropic.Anthropic) -> None:
    """The checkpoint in the repository: a streamed chat, a tool loop."""
    greedy: Any = {"extra_body": {"temperature": 0.0}}
    chat = said("Anna lives in Paris. Where does Anna live?")
    assert "Paris" in ask(client, chat, **greedy).content[-1].text
    messages = said("In which city does Anna live?")
    greedy |= {"tools": TOOLS[:1], "thinking": THINKING}
    first = ask(client, messages, **greedy)
    assert first.content[-1].name == "find_city"
    results = [{"type": "tool_result", "tool_use_id": first.content[-1].id, "content": "Paris"}]
    messages += [
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": results},
    ]
    assert "Paris" in ask(client, messages, **greedy).content[-1].text

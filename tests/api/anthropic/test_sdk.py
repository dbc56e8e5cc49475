"""Anthropic's own client against a running server and the embedded model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from tests.api.server_process import ServerProcess

MODEL = "deepseek-v3.2-tiny"
TOOLS: Any = [
    {
        "name": "find_city",
        "description": "Find the city where a person lives",
        "input_schema": {
            "type": "object",
            "properties": {"name": {"type": "string"}},
            "required": ["name"],
        },
    }
]
QUESTION = "In which city does Anna live?"
GREEDY: Any = {"temperature": 0.0}
"""Newer clients have no argument for it."""
THINKING: Any = {"type": "enabled", "budget_tokens": 1024}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    server = ServerProcess()
    yield server
    assert server.close() == 0


@pytest.fixture(params=["", "/anthropic"])
def client(server: ServerProcess, request: pytest.FixtureRequest) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=server.url + request.param, api_key="none", max_retries=0
    ) as client:
        yield client


def ask(client: anthropic.Anthropic, messages: Any, **more: Any) -> Any:
    wanted = {"model": MODEL, "max_tokens": 200, "messages": messages, "extra_body": GREEDY}
    return client.messages.create(**wanted | more)


def test_a_message(client: anthropic.Anthropic) -> None:
    question: Any = [{"role": "user", "content": "Anna lives in Paris. Where does Anna live?"}]
    answer = ask(client, question)
    (block,) = answer.content
    assert (block.type, answer.stop_reason, answer.role) == ("text", "end_turn", "assistant")
    assert "Paris" in block.text
    assert answer.usage.output_tokens > 0 and answer.id.startswith("msg_")
    cut = ask(client, question, stop_sequences=["Paris"])
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", "Paris")
    assert ask(client, question, max_tokens=1).stop_reason == "max_tokens"


@pytest.mark.parametrize("reminder", [False, True])
def test_a_streamed_tool_loop_keeps_its_reasoning(
    client: anthropic.Anthropic, reminder: bool
) -> None:
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    more: Any = {"tools": TOOLS, "thinking": THINKING}
    with client.messages.stream(
        model=MODEL, max_tokens=200, messages=messages, extra_body=GREEDY, **more
    ) as stream:
        first = stream.get_final_message()
    assert [block.type for block in first.content] == ["thinking", "tool_use"]
    assert first.stop_reason == "tool_use"
    thought, call = first.content
    assert thought.type == "thinking" and thought.thinking and thought.signature
    assert call.type == "tool_use" and (call.name, call.input) == ("find_city", {"name": "Anna"})
    whole = ask(client, messages, **more)
    assert whole.content[0].thinking == thought.thinking

    messages.append({"role": "assistant", "content": first.content})
    blocks: list[Any] = [{"type": "tool_result", "tool_use_id": call.id, "content": "Paris"}]
    if reminder:
        blocks.append({"type": "text", "text": "Answer in one sentence."})
    messages.append({"role": "user", "content": blocks})
    second = ask(client, messages, **more)
    # The whole first step is a prefix: reasoning kept, token for token.
    used = first.usage.input_tokens + (first.usage.cache_read_input_tokens or 0)
    assert (
        second.usage.cache_read_input_tokens >= (used + first.usage.output_tokens) // 64 * 64 - 64
    )
    if not reminder:
        assert "Paris" in second.content[-1].text


def test_tokens_are_counted_as_they_are_used(client: anthropic.Anthropic) -> None:
    messages: Any = [{"role": "user", "content": QUESTION}]
    count = client.messages.count_tokens(model=MODEL, messages=messages, tools=TOOLS, system="Hi.")
    used = ask(client, messages, tools=TOOLS, system="Hi.").usage
    assert count.input_tokens == used.input_tokens + used.cache_read_input_tokens


def test_errors_have_their_shape(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="temperature") as caught:
        ask(client, [{"role": "user", "content": "Hi"}], extra_body={"temperature": 9.0})
    body: Any = caught.value.body
    assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(
            model="claude", max_tokens=1, messages=[{"role": "user", "content": "Hi"}]
        )
    dangling: Any = [
        {"role": "user", "content": "Hi"},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]},
    ]
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[1\]"):
        ask(client, dangling)
    image: Any = [{"role": "user", "content": [{"type": "image", "source": {}}]}]
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\]\.content"):
        ask(client, image)


def test_other_paths_keep_openai_errors(server: ServerProcess) -> None:
    assert "type" not in httpx.get(f"{server.url}/v1/nothing").json()
    missing = httpx.get(f"{server.url}/v1/messages")
    assert (missing.status_code, missing.json()["type"]) == (405, "error")

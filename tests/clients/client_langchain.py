"""langchain-openai, which neither shows nor sends reasoning, and langchain-deepseek, which shows it
and does not send it back: the server restores it."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_deepseek import ChatDeepSeek
from langchain_openai import ChatOpenAI
from live import (
    CHAT,
    FORCED,
    MODEL,
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
from pydantic import BaseModel
from script import call, play, step


@tool
def find_city(name: str) -> str:
    """Find the city where a person lives"""
    return answer_of({"name": name})


@tool
def weather(city: str) -> str:
    """Get the weather in a city"""
    return answer_of({"city": city})


@tool
def clothes(weather: str) -> str:
    """Get what to wear in a weather"""
    return answer_of({"weather": weather})


TOOLS: dict[str, Any] = {one.name: one for one in (find_city, weather, clothes)}
THINKING: Any = {"extra_body": {"thinking": {"type": "enabled"}}}


class City(BaseModel):
    """A city."""

    name: str
    country: str


def chat_model(kind: type[Any], **more: Any) -> Any:
    place = "base_url" if kind is ChatOpenAI else "api_base"
    return kind(model=MODEL, api_key="none", max_retries=0, **{place: f"{URL}/v1"}, **more)


@pytest.fixture(params=[ChatOpenAI, ChatDeepSeek])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def results_of(message: AIMessage) -> list[Any]:
    return [
        ToolMessage(TOOLS[called["name"]].invoke(called["args"]), tool_call_id=called["id"])
        for called in message.tool_calls
    ]


def test_a_streamed_chat(kind: Any) -> None:
    parts = list(chat_model(kind, stream_usage=True).stream(CHAT))
    whole = parts[0]
    for part in parts[1:]:
        whole += part
    assert whole.content == "Good morning, Anna! 😀"
    assert whole.usage_metadata["output_tokens"] > 0


@pytest.mark.parametrize("choice", ["any", "weather"])
def test_a_forced_tool(kind: Any, choice: str) -> None:
    model = chat_model(kind).bind_tools([*TOOLS.values()], tool_choice=choice)
    (called,) = model.invoke(FORCED).tool_calls
    assert (called["name"], called["args"]) == ("weather", {"city": "Paris"})


def test_two_tools_at_once_and_their_results_in_reverse(kind: Any) -> None:
    model = chat_model(kind).bind_tools([*TOOLS.values()])
    messages: list[Any] = [HumanMessage(PARALLEL)]
    parts = list(model.stream(messages))
    message = parts[0]
    for part in parts[1:]:
        message += part
    results = results_of(message)
    if kind is ChatOpenAI:  # the other one sends a list as its JSON text
        for result in results:
            result.content = [{"type": "text", "text": result.content}]
    messages += [message, *results[::-1]]
    assert model.invoke(messages).content == PARALLEL_ANSWER


def test_one_call_at_a_time_can_be_asked_for(kind: Any) -> None:
    model = chat_model(kind).bind_tools([*TOOLS.values()], parallel_tool_calls=False)
    (called,) = model.invoke(play(step("", call("weather", city="Rome")))).tool_calls
    assert called["args"] == {"city": "Rome"}


@pytest.mark.parametrize("stream", [False, True])
def test_three_thinking_steps(kind: Any, stream: bool) -> None:
    name = f"{kind.__name__} {stream}"
    model = chat_model(kind, streaming=stream, **THINKING).bind_tools([*TOOLS.values()])
    messages: list[Any] = [HumanMessage(three_steps(name))]
    with recorded() as seen:
        while True:
            message = model.invoke(messages)
            if kind is ChatDeepSeek:
                assert message.additional_kwargs["reasoning_content"].startswith("<Hm> & so on:")
            messages.append(message)
            if not message.tool_calls:
                break
            messages += results_of(message)
        assert message.content == THREE_STEPS_ANSWER
        model.invoke([*messages, HumanMessage(CHAT)])
    check_loop(seen[:-1])
    check_new_turn(seen, thought(name, "what to wear"))


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_structured_output(kind: Any, method: str) -> None:
    if kind is ChatDeepSeek and method == "json_schema":
        method = "function_calling"  # what it makes of it
    arguments = {"name": "Paris", "country": "France"}
    script = play(step('{"name": "Paris", "country": "France"}'))
    if method == "function_calling":
        script = play(step("", call("City", **arguments)))
    found = chat_model(kind).with_structured_output(City, method=method).invoke(script)
    assert found == City(**arguments)


def test_embedded(kind: Any) -> None:
    """The checkpoint in the repository: a streamed chat, a tool loop."""
    chat = chat_model(kind, temperature=0)
    question = "Anna lives in Paris. Where does Anna live?"
    assert "Paris" in "".join(part.content for part in chat.stream(question))
    model = chat_model(kind, temperature=0, **THINKING).bind_tools([find_city])
    messages: list[Any] = [HumanMessage("In which city does Anna live?")]
    message = model.invoke(messages)
    (called,) = message.tool_calls
    messages += [message, ToolMessage("Paris", tool_call_id=called["id"])]
    assert "Paris" in model.invoke(messages).content

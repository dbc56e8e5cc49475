"""openai-agents, over chat completions and over responses."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from agents.agent import StopAtTools
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
from openai import AsyncOpenAI
from openai.types.shared import Reasoning
from pydantic import BaseModel
from script import play, step

set_tracing_disabled(True)


@function_tool(strict_mode=False)
def find_city(name: str) -> str:
    """Find the city where a person lives"""
    return answer_of({"name": name})


@function_tool
def weather(city: str) -> str:
    """Get the weather in a city"""
    return answer_of({"city": city})


@function_tool(strict_mode=False)
def clothes(weather: str) -> str:
    """Get what to wear in a weather"""
    return answer_of({"weather": weather})


TOOLS: list[Any] = [find_city, weather, clothes]
THINKING: Any = {"reasoning": Reasoning(effort="high")}


class City(BaseModel):
    name: str
    country: str


@pytest.fixture(params=[OpenAIChatCompletionsModel, OpenAIResponsesModel])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def agent(kind: Any, **more: Any) -> Agent[Any]:
    """Made inside the event loop of a test: the HTTP client belongs to it."""
    client = AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
    settings = ModelSettings(**more.pop("settings", {}))
    model = kind(model=MODEL, openai_client=client)
    return Agent(name="agent", model=model, model_settings=settings, **more)


def run(kind: Any, said: Any, *, stream: bool = False, **more: Any) -> Any:
    async def once() -> Any:
        if not stream:
            return await Runner.run(agent(kind, **more), said)
        result = Runner.run_streamed(agent(kind, **more), said)
        async for _ in result.stream_events():
            pass
        return result

    return asyncio.run(once())


def test_a_streamed_chat(kind: Any) -> None:
    assert run(kind, CHAT, stream=True).final_output == "Good morning, Anna! 😀"


@pytest.mark.parametrize("choice", ["required", "weather"])
def test_a_forced_tool(kind: Any, choice: str) -> None:
    found = run(
        kind,
        FORCED,
        tools=TOOLS,
        settings={"tool_choice": choice},
        tool_use_behavior=StopAtTools(stop_at_tool_names=["weather"]),
    )
    assert found.final_output == "sunny"


@pytest.mark.parametrize("stream", [False, True])
def test_two_tools_at_once(kind: Any, stream: bool) -> None:
    assert run(kind, PARALLEL, tools=TOOLS, stream=stream).final_output == PARALLEL_ANSWER


@pytest.mark.parametrize("stream", [False, True])
def test_three_thinking_steps(kind: Any, stream: bool) -> None:
    name = f"agents {kind.__name__} {stream}"
    asked: Any = {"tools": TOOLS, "settings": THINKING, "stream": stream}
    with recorded() as seen:
        found = run(kind, three_steps(name), **asked)
        assert found.final_output == THREE_STEPS_ANSWER
        run(kind, [*found.to_input_list(), {"role": "user", "content": CHAT}], **asked)
    check_loop(seen[:-1])
    check_new_turn(seen, thought(name, "what to wear"))


def test_an_output_of_a_type(kind: Any) -> None:
    script = play(step('{"name": "Paris", "country": "France"}'))
    found = run(kind, script, output_type=City)
    assert found.final_output == City(name="Paris", country="France")


def test_embedded(kind: Any) -> None:
    """The checkpoint in the repository: a streamed chat, a tool loop."""
    greedy: Any = {"settings": {"temperature": 0.0}}
    question = "Anna lives in Paris. Where does Anna live?"
    assert "Paris" in run(kind, question, stream=True, **greedy).final_output
    found = run(kind, "In which city does Anna live?", tools=TOOLS[:1], **greedy)
    assert "Paris" in found.final_output

"""pydantic-ai: validates every field of an answer, and forces tools for its structured outputs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from live import (
    CHAT,
    DESCRIPTIONS,
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
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, PromptedOutput, Tool, ToolOutput
from pydantic_ai.messages import ThinkingPart
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.deepseek import DeepSeekProvider
from pydantic_ai.providers.openai import OpenAIProvider
from script import call, play, step

THINKING: Any = {"extra_body": {"thinking": {"type": "enabled"}}}


class City(BaseModel):
    name: str
    country: str


PARIS = City(name="Paris", country="France")


def find_city(name: str) -> str:
    return answer_of({"name": name})


def weather(city: str) -> str:
    return answer_of({"city": city})


def clothes(weather: str) -> str:
    return answer_of({"weather": weather})


TOOLS = [Tool(one, description=DESCRIPTIONS[one.__name__]) for one in (find_city, weather, clothes)]


def model_of(provider: str) -> Any:
    client = AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
    if provider == "responses":
        return OpenAIResponsesModel(MODEL, provider=OpenAIProvider(openai_client=client))
    kind = DeepSeekProvider if provider == "deepseek" else OpenAIProvider
    return OpenAIChatModel(MODEL, provider=kind(openai_client=client))


@pytest.fixture(params=["openai", "deepseek", "responses"])
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_streamed_chat(provider: str) -> None:
    async def run() -> str:
        async with Agent(model_of(provider)).run_stream(CHAT) as answer:
            text = [part async for part in answer.stream_text(delta=True)]
            assert answer.usage.output_tokens > 0
        return "".join(text)

    assert asyncio.run(run()) == "Good morning, Anna! 😀"


def test_a_forced_tool(provider: str) -> None:
    script = play(step("", call("final_result", name="Paris", country="France")))
    agent = Agent(model_of(provider), output_type=ToolOutput(City, name="final_result"))
    assert agent.run_sync(script).output == PARIS


@pytest.mark.parametrize("form", [NativeOutput, PromptedOutput])
def test_a_text_of_a_form(provider: str, form: Any) -> None:
    if provider == "deepseek":
        form = PromptedOutput  # DeepSeek's own API has no schemas, so this provider asks for none
    script = play(step('{"name": "Paris", "country": "France"}'))
    assert Agent(model_of(provider), output_type=form(City)).run_sync(script).output == PARIS


@pytest.mark.parametrize("stream", [False, True])
def test_two_tools_at_once(provider: str, stream: bool) -> None:
    agent = Agent(model_of(provider), tools=TOOLS)
    if not stream:
        assert agent.run_sync(PARALLEL).output == PARALLEL_ANSWER
        return

    async def run() -> str:
        async with agent.run_stream_events(PARALLEL) as events:
            async for event in events:
                if event.event_kind == "agent_run_result":
                    return str(event.result.output)
        raise AssertionError("no result")

    assert asyncio.run(run()) == PARALLEL_ANSWER


def test_three_thinking_steps(provider: str) -> None:
    name = f"pydantic-ai {provider}"
    agent = Agent(model_of(provider), tools=TOOLS, model_settings=THINKING)
    if provider == "responses":
        agent = Agent(
            model_of(provider),
            tools=TOOLS,
            model_settings={"openai_reasoning_effort": "high"},  # type: ignore[typeddict-unknown-key]
        )
    with recorded() as seen:
        found = agent.run_sync(three_steps(name))
        assert found.output == THREE_STEPS_ANSWER
        thoughts = [
            part.content
            for message in found.all_messages()
            for part in message.parts
            if isinstance(part, ThinkingPart)
        ]
        assert len(thoughts) == 4
        if provider != "responses":  # which keeps raw reasoning for the next request only
            assert thoughts[2] == thought(name, "what to wear")
        agent.run_sync(CHAT, message_history=found.all_messages())
    check_loop(seen[:-1])
    check_new_turn(seen, thought(name, "what to wear"))


def test_embedded(provider: str) -> None:
    """The checkpoint in the repository: a streamed chat, a tool loop."""

    async def chat() -> str:
        agent = Agent(model_of(provider), model_settings={"temperature": 0})
        async with agent.run_stream("Anna lives in Paris. Where does Anna live?") as answer:
            return str(await answer.get_output())

    assert "Paris" in asyncio.run(chat())
    agent = Agent(model_of(provider), tools=TOOLS[:1], model_settings={"temperature": 0})
    assert "Paris" in agent.run_sync("In which city does Anna live?").output

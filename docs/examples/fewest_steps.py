"""Parallel-fewest-step: several attempts at one task at a time, the shortest one wins.

Every attempt calls its tools by itself, so this is the client's business; the server shares what
the attempts have in common. An attempt that can no longer win is given up.

    winnow serve &
    python docs/examples/fewest_steps.py

Source: DeepSeek-V3.2 report, section 4.4, where it is the baseline of context management.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from openai import AsyncOpenAI

CallTool = Callable[[str, dict[str, Any]], Awaitable[str]]
"""(name, arguments) -> the result, as text."""


class Attempt(NamedTuple):
    steps: int
    """Answers of the model that called tools."""
    answer: str
    messages: list[Any]
    """The whole conversation, the answer included."""


class Race:
    """What the attempts of one task know of each other."""

    def __init__(self, most_steps: int) -> None:
        self._fewest = most_steps

    def is_lost(self, steps: int) -> bool:
        """Whether an attempt that takes at least `steps` has too many to win."""
        return steps > self._fewest

    def finish(self, steps: int) -> None:
        """Notes that an attempt has reached its answer."""
        self._fewest = min(self._fewest, steps)


async def attempt(
    client: AsyncOpenAI,
    messages: Sequence[Any],
    call_tool: CallTool,
    race: Race,
    **request: Any,
) -> Attempt | None:
    """Returns one finished attempt, None for one that was given up. The messages are not changed.

    request: further fields of each chat completion, `model` and `tools` among them.
    """
    messages = list(messages)
    steps = 0
    while True:
        completion = await client.chat.completions.create(messages=messages, **request)
        message = completion.choices[0].message
        # Reasoning goes back with it: within the turn it is part of what the model sees.
        messages.append(message.model_dump(exclude_none=True))
        if not message.tool_calls:
            race.finish(steps)
            return Attempt(steps, message.content or "", messages)
        steps += 1
        if race.is_lost(steps):
            return None
        results = await asyncio.gather(
            *(
                call_tool(call.function.name, json.loads(call.function.arguments))
                for call in message.tool_calls
            )
        )
        for call, result in zip(message.tool_calls, results, strict=True):
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


async def fewest_steps(
    client: AsyncOpenAI,
    messages: Sequence[Any],
    call_tool: CallTool,
    *,
    attempts: int,
    most_steps: int = 100,
    seed: int = 0,
    **request: Any,
) -> Attempt | None:
    """Returns the attempt that took the fewest steps, the first of several; None if none finished.

    Attempt number k samples with `seed + k`.
    """
    race = Race(most_steps)
    runs = [
        attempt(client, messages, call_tool, race, seed=seed + number, **request)
        for number in range(attempts)
    ]
    finished = [run for run in await asyncio.gather(*runs) if run is not None]
    return min(finished, key=lambda run: run.steps, default=None)


TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "find_city",
            "description": "Find the city where a person lives",
            "parameters": {"type": "object", "properties": {"name": {"type": "string"}}},
        },
    }
]


async def find_city(name: str, arguments: dict[str, Any]) -> str:
    """Stands for a tool that takes its time."""
    return "Paris"


async def main() -> None:
    """Asks the embedded model three times at once."""
    async with AsyncOpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none") as client:
        best = await fewest_steps(
            client,
            [{"role": "user", "content": "In which city does Anna live?"}],
            find_city,
            attempts=3,
            most_steps=5,
            model="deepseek-v3.2-tiny",
            tools=TOOLS,
            reasoning_effort="high",
        )
    print(best)


if __name__ == "__main__":
    asyncio.run(main())

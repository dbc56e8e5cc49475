"""The running server, and what the clients' tests share: their tools, and what a loop must be."""

from __future__ import annotations

import contextlib
import json
import os
import urllib.request
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from script import call, play, step

URL = os.environ["WINNOW_URL"]
MODEL = os.environ["WINNOW_MODEL"]
PAGE_TOKENS = 64
RUN = os.urandom(4).hex()
"""In every thought, so that a run finds no pages of the one before."""

FUNCTIONS: Mapping[str, dict[str, Any]] = {
    "find_city": {"name": {"type": "string"}},
    "weather": {"city": {"type": "string"}},
    "clothes": {"weather": {"type": "string"}},
}
DESCRIPTIONS = {
    "find_city": "Find the city where a person lives",
    "weather": "Get the weather in a city",
    "clothes": "Get what to wear in a weather",
}
RESULTS = {"Anna": "Paris", "Paris": "sunny", "Rome": "rainy", "sunny": "a hat"}
"""What the tools answer, by their one argument."""


def parameters(name: str) -> dict[str, Any]:
    """Returns a tool's schema."""
    properties = FUNCTIONS[name]
    return {"type": "object", "properties": properties, "required": list(properties)}


OPENAI_TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": DESCRIPTIONS[name],
            "parameters": parameters(name),
        },
    }
    for name in FUNCTIONS
]

CHAT = play(step("Good morning, Anna! 😀"))
FORCED = play(step("", call("weather", city="Paris")), step("It is $0."))
PARALLEL = play(
    step("Let me see.", call("weather", city="Paris"), call("weather", city="Rome")),
    step("Paris: $0. Rome: $1."),
)
PARALLEL_ANSWER = "Paris: sunny. Rome: rainy."
THREE_STEPS_ANSWER = "Anna wears a hat."


def three_steps(name: str) -> str:
    """Returns a thinking tool loop in which each step needs the one before; its thoughts are only
    its own, so that no other loop's pages are found."""
    return play(
        step("", call("find_city", name="Anna"), think=thought(name, "where Anna lives")),
        step("She lives in $0.", call("weather", city="Paris"), think=thought(name, "the weather")),
        step("", call("clothes", weather="sunny"), think=thought(name, "what to wear")),
        step("Anna wears $0.", think=thought(name, "the answer")),
    )


def thought(name: str, about: str) -> str:
    """Returns reasoning of more than a page."""
    steps = [f"{number}. I think about {about}, for {name} ({RUN})." for number in range(1, 15)]
    return "\n".join(["<Hm> & so on:", *steps])


def answer_of(arguments: Mapping[str, Any] | str) -> str:
    """Returns what a tool answers to its arguments."""
    given = json.loads(arguments) if isinstance(arguments, str) else arguments
    (value,) = given.values()
    return RESULTS[value]


@contextlib.contextmanager
def recorded() -> Iterator[list[dict[str, Any]]]:
    """Collects the prompts that the model saw inside: in the list when the block has ended."""
    seen: list[dict[str, Any]] = []
    before = len(_prompts(0))
    yield seen
    seen += _prompts(before)


def _prompts(since: int) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{URL}/prompts?since={since}", timeout=60) as answer:
        found: list[dict[str, Any]] = json.load(answer)
    return found


def check_loop(seen: list[dict[str, Any]], steps: int = 4) -> None:
    """Checks that each prompt begins with all that was asked and said before, reasoning included,
    token for token, and that the cache finds more in every step."""
    assert len(seen) == steps, [one["prompt"] for one in seen]
    for before, after in pairwise(seen):
        sequence = before["prompt_token_ids"] + before["token_ids"]
        assert after["prompt_token_ids"][: len(sequence)] == sequence, after["prompt"]
        assert after["cached_tokens"] >= (len(sequence) - 1) // PAGE_TOKENS * PAGE_TOKENS
    cached = [one["cached_tokens"] for one in seen]
    assert cached == sorted(set(cached)), "each step finds more than the one before"


def check_new_turn(seen: list[dict[str, Any]], reasoning: str) -> None:
    """Checks the last two prompts: a new user message drops the reasoning, keeps the tools, and
    finds in the cache what stands before the first thought, in whole pages."""
    old, new = seen[-2:]
    assert reasoning in old["prompt"] and reasoning not in new["prompt"]
    assert "</function_results>" in new["prompt"]
    equal = 0
    sequence = old["prompt_token_ids"] + old["token_ids"]
    for one, other in zip(sequence, new["prompt_token_ids"], strict=False):
        if one != other:
            break
        equal += 1
    assert new["cached_tokens"] == equal // PAGE_TOKENS * PAGE_TOKENS

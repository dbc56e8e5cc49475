"""Tool loops of one and two steps: reason, call, read the result, answer."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec

from api.chat.messages import Message
from training.tasks.case import Turn, answer, call, result
from training.tasks.chat import vary
from training.tasks.toolbox import ABILITIES, Tool, draw_argument, draw_result, pick

MISSING_TOOL = "I do not know."
FAILED = "Sorry, the tool found nothing."
ERRORS = (
    '{"error": "not found"}',
    "error: not found",
    '{"error": "no result"}',
    "not found",
    "null",
)


class Chain(msgspec.Struct, frozen=True):
    """A question that needs the result of `first` as the argument of `second`."""

    first: str
    second: str
    topic: str
    questions: str


CHAINS = (
    Chain(
        "home",
        "weather",
        "for the weather where {a} lives",
        "What is the weather where {a} lives?|How is the weather in the city of {a}?|"
        "What is the weather like where {a} lives?|How is the weather at {a}'s home?",
    ),
    Chain(
        "home",
        "sky",
        "for the weather where {a} lives",
        "What is the weather where {a} lives?|How is the weather in the city of {a}?|"
        "What is the weather like where {a} lives?",
    ),
    Chain(
        "home",
        "time",
        "for the time where {a} lives",
        "What time is it where {a} lives?|What is the time in the city of {a}?|"
        "How late is it where {a} lives?",
    ),
    Chain(
        "capital",
        "weather",
        "for the weather in the capital of {a}",
        "What is the weather in the capital of {a}?|How is the weather in the capital of {a}?|"
        "What's the weather like in {a}'s capital?",
    ),
    Chain(
        "capital",
        "time",
        "for the time in the capital of {a}",
        "What time is it in the capital of {a}?|What is the time in the capital of {a}?|"
        "Tell me the time in {a}'s capital.",
    ),
    Chain(
        "owner",
        "phone",
        "for the phone number of the owner of the {a}",
        "What is the phone number of the owner of the {a}?|How can I call the owner of the {a}?|"
        "Find the phone number of whoever owns the {a}.",
    ),
    Chain(
        "owner",
        "home",
        "where the owner of the {a} lives",
        "Where does the owner of the {a} live?|In which city does the owner of the {a} live?|"
        "Find out where the owner of the {a} lives.",
    ),
)
THOUGHTS = {
    "home": "{a} lives in {x}.",
    "capital": "The capital of {a} is {x}.",
    "owner": "The {a} belongs to {x}.",
}
"""What the model notes after the first step of a chain."""


def arguments_of(tool: Tool, texts: list[str]) -> dict[str, Any]:
    """The arguments object of a call, numbers as numbers."""
    kinds = ABILITIES[tool.ability].parameters
    return {
        name: int(text) if kind[2] == "integer" else text
        for name, text, kind in zip(tool.parameters, texts, kinds, strict=True)
    }


def calling(tool: Tool, texts: list[str]) -> str:
    """The sentence with which the model decides on a call."""
    return f"I call {tool.name} with {' and '.join(texts)}." if texts else f"I call {tool.name}."


def tool_turn(rng: Random, tool: Tool, number: int) -> Turn:
    """A question that one call of `tool` answers; its call id is made from `number`."""
    spec = ABILITIES[tool.ability]
    texts = [draw_argument(rng, kind) for _, kind, _ in spec.parameters]
    names = dict(zip("ab", texts, strict=False))
    question = vary(rng, pick(rng, spec.questions).format(**names), 0.25)
    topic = spec.topic.format(**names)
    first = call(
        tool.name,
        arguments_of(tool, texts),
        f"The user asks {topic}. {calling(tool, texts)}",
        number,
    )
    if rng.random() < 0.05:
        failure = rng.choice(ERRORS)
        replies = (first, result(failure, number), answer(FAILED, "The result is an error."))
        return Turn("tool", question, replies, f"{question}|{failure}", (FAILED,))
    output, values = draw_result(rng, tool.ability, texts)
    reply = spec.reply.format(**names, **values)
    final = answer(reply, f"The result is {_listed(spec.reply, values)}.")
    key = f"{tool.ability}|{'|'.join(texts)}|{'|'.join(values.values())}"
    expected = tuple(values.values()) + tuple(texts[:1])
    return Turn("tool", question, (first, result(output, number), final), key, expected)


def _listed(reply: str, values: dict[str, str]) -> str:
    return ", ".join(values.values()) if "{x}" in reply else "good"


def chain_turn(rng: Random, chain: Chain, first: Tool, second: Tool, number: int) -> Turn:
    """A question that needs two calls, the second with what the first returned."""
    start, end = ABILITIES[first.ability], ABILITIES[second.ability]
    subject = draw_argument(rng, start.parameters[0][1])
    question = vary(rng, pick(rng, chain.questions).format(a=subject), 0.25)
    opening = f"The user asks {chain.topic.format(a=subject)}. First {calling(first, [subject])}"
    found, link = draw_result(rng, first.ability, [subject])
    middle = link["x"]
    output, values = draw_result(rng, second.ability, [middle])
    note = THOUGHTS[chain.first].format(a=subject, x=middle)
    replies: tuple[Message, ...] = (
        call(first.name, arguments_of(first, [subject]), opening, number),
        result(found, number),
        call(
            second.name,
            arguments_of(second, [middle]),
            f"{note} Now {calling(second, [middle])}",
            number + 1,
        ),
        result(output, number + 1),
        answer(
            end.reply.format(a=middle, **values), f"The result is {', '.join(values.values())}."
        ),
    )
    key = f"{chain.first}|{chain.second}|{subject}|{middle}|{'|'.join(values.values())}"
    return Turn("chain", question, replies, key, (*values.values(), middle))


def no_tool_turn(rng: Random, ability: str) -> Turn:
    """A question that only a tool could answer, asked when that tool is not there."""
    spec = ABILITIES[ability]
    texts = [draw_argument(rng, kind) for _, kind, _ in spec.parameters]
    names = dict(zip("ab", texts, strict=False))
    question = vary(rng, pick(rng, spec.questions).format(**names), 0.25)
    reasoning = f"The user asks {spec.topic.format(**names)}. I was not told."
    reply = answer(MISSING_TOOL, reasoning)
    return Turn("unknown", question, (reply,), question, (MISSING_TOOL,))

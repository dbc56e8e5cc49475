"""Agent conversations made up from a seed: how long everything is, and how long it takes.

    conversation   turns, each begun by a message from the user after a time of thinking
    turn           tool steps (reason, call a tool, get its result), then reason and answer

Lengths are log-uniform in their range, so that short ones are common and long ones count; numbers
of turns and steps are uniform; times are log-normal around their median. The same seed, agent and
number make the same conversation, whatever the scheduler under test does with the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import exp, log
from random import Random
from typing import Literal

import msgspec

Range = tuple[int, int]
"""Smallest and largest, both possible."""


class ConversationError(ValueError):
    """A shape of conversations that cannot be; the message names the field and what it allows."""


class ConversationShape(msgspec.Struct, frozen=True, kw_only=True):
    """What conversations are like; raises ConversationError for an impossible range."""

    system_tokens: int = 3000
    """System text and tools, the same for every conversation."""
    turns: Range = (3, 8)
    tool_steps: Range = (3, 10)
    """Of a turn."""
    user_tokens: Range = (50, 500)
    reasoning_tokens: Range = (200, 2000)
    """(0, 0): no thinking, so nothing is dropped."""
    reasoning_of: Literal["turn", "step"] = "turn"
    """Whether that is all of a turn, spread over its steps and the answer, or each of them."""
    call_tokens: Range = (30, 200)
    tool_result_tokens: Range = (200, 8000)
    answer_tokens: Range = (100, 800)
    think_median_s: float = 20.0
    """From an answer to the user's next message."""
    tool_median_s: float = 2.0
    """From a tool call to its result."""
    think_sigma: float = 1.0
    """Of the logarithm; 0: always the median."""
    tool_sigma: float = 1.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, tuple):
                low = 0 if name in ("tool_steps", "reasoning_tokens") else 1
                if not low <= value[0] <= value[1]:
                    raise ConversationError(f"{name} is {value}; allowed: {low} and above, rising")
            elif isinstance(value, (int, float)) and not 0 <= value < float("inf"):
                raise ConversationError(f"{name} is {value}; allowed: 0 and above, finite")


class ToolStep(msgspec.Struct, frozen=True):
    """One call of a tool."""

    reasoning_tokens: int
    call_tokens: int
    latency_s: float
    result_tokens: int


class Turn(msgspec.Struct, frozen=True):
    """From a message of the user to its answer."""

    think_s: float
    """Before the message."""
    user_tokens: int
    steps: tuple[ToolStep, ...]
    reasoning_tokens: int
    """Before the answer."""
    answer_tokens: int


class Conversation(msgspec.Struct, frozen=True):
    """What one user and one agent do."""

    turns: tuple[Turn, ...]
    turns_before: int = 0
    """Turns at the start that are history already: an agent met in the middle of its life."""


def conversation(shape: ConversationShape, seed: int, agent: int, number: int) -> Conversation:
    """Returns an agent's `number`-th conversation; its 0th is met at a turn chosen at random."""
    random = Random(f"{seed} {agent} {number}")
    turns = tuple(_turn(shape, random) for _ in range(random.randint(*shape.turns)))
    return Conversation(turns, 0 if number else random.randrange(len(turns)))


def conversations(shape: ConversationShape, seed: int, agent: int) -> Iterator[Conversation]:
    """Yields an agent's conversations, one after the other, without end."""
    number = 0
    while True:
        yield conversation(shape, seed, agent, number)
        number += 1


def _turn(shape: ConversationShape, random: Random) -> Turn:
    steps = random.randint(*shape.tool_steps)
    if shape.reasoning_of == "step":
        reasoning = [log_uniform(random, shape.reasoning_tokens) for _ in range(steps + 1)]
    else:
        total = log_uniform(random, shape.reasoning_tokens)
        bounds = [total * place // (steps + 1) for place in range(steps + 2)]
        reasoning = [end - start for start, end in pairwise(bounds)]
    return Turn(
        _time_s(random, shape.think_median_s, shape.think_sigma),
        log_uniform(random, shape.user_tokens),
        tuple(_step(shape, random, reasoning[place]) for place in range(steps)),
        reasoning[-1],
        log_uniform(random, shape.answer_tokens),
    )


def _step(shape: ConversationShape, random: Random, reasoning_tokens: int) -> ToolStep:
    return ToolStep(
        reasoning_tokens,
        log_uniform(random, shape.call_tokens),
        _time_s(random, shape.tool_median_s, shape.tool_sigma),
        log_uniform(random, shape.tool_result_tokens),
    )


def log_uniform(random: Random, allowed: Range) -> int:
    """Returns a whole number in the range; those of one octave are as likely as of the next."""
    low, high = allowed
    drawn = int(exp(random.uniform(log(low + 1), log(high + 2)))) - 1
    return max(low, min(drawn, high))


def _time_s(random: Random, median_s: float, sigma: float) -> float:
    return median_s * exp(random.gauss(0.0, sigma)) if sigma else median_s

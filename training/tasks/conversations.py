"""Conversations: turns of several tasks put together, with a system text, facts and tools."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any, Literal

from training.tasks.case import Case, Turn
from training.tasks.chat import chat_turn
from training.tasks.facts import (
    Fact,
    draw_facts,
    question_turn,
    remember_turn,
    tell,
    unknown_turn,
)
from training.tasks.toolbox import ABILITIES, Tool, draw_tool
from training.tasks.tools import CHAINS, chain_turn, no_tool_turn, tool_turn

Split = Literal["train", "held-out"]
TASKS = ("chat", "facts", "unknown", "tool", "chain", "mixed")
SYSTEMS = (
    "",
    "",
    "",
    "",
    "You are a helpful assistant.",
    "You are Winnow.",
    "Be brief.",
    "You are a tiny model.",
    "Answer the user.",
    "You are a helpful AI assistant. Be kind.",
)
NEED_A_TOOL = ("weather", "time", "capital", "phone", "today", "add")


class NoSuchTurnError(LookupError):
    """The drawn facts or tools allow no turn of the wanted split; draw others."""


def _of_split(make: Callable[[], Turn], split: Split) -> Turn:
    for _ in range(64):
        turn = make()
        if turn.held_out == (split == "held-out"):
            return turn
    raise NoSuchTurnError(f"no {split} turn among 64")


def _place_facts(
    rng: Random, facts: list[Fact], filler: int, turns: list[Callable[[str], Turn]], split: Split
) -> tuple[str, list[Turn]]:
    """(system text, turns): the facts go to the system text, the first question, or their own turn.

    Only the last turn belongs to the split; earlier ones are always training turns.
    """
    told = tell(rng, facts, filler)
    system = rng.choice(SYSTEMS)
    where = rng.choice(("system", "user", "user", "turn"))
    made: list[Turn] = []
    if where == "system":
        system = f"{system}\n{told}" if system else told
    elif where == "turn":
        made.append(remember_turn(rng, told))
    for index, make in enumerate(turns):
        last = index == len(turns) - 1
        inline = told if index == 0 and where == "user" else ""
        made.append(_of_split(partial(make, inline), split if last else "train"))
    return system, made


def facts_case(
    rng: Random, split: Split, facts: int, questions: int, filler: int = 0, unknown: float = 0.15
) -> Case:
    """Questions about facts; the last question is the graded one."""
    known = draw_facts(rng, facts)

    def make(told: str) -> Turn:
        if not known or rng.random() < unknown:
            return unknown_turn(rng, known, told)
        return question_turn(rng, rng.choice(known), told)

    system, turns = _place_facts(rng, known, filler, [make] * questions, split)
    return Case(turns[-1].task, system, (), tuple(turns))


def chat_case(rng: Random, split: Split, turns: int) -> Case:
    """Small talk only."""
    made = [_of_split(lambda: chat_turn(rng), "train") for _ in range(turns - 1)]
    made.append(_of_split(lambda: chat_turn(rng), split))
    return Case("chat", rng.choice(SYSTEMS), (), tuple(made))


def draw_tools(rng: Random, needed: list[str], count: int, usual: float = 0.5) -> dict[str, Tool]:
    """`count` tools in random order, among them one for each needed ability."""
    clash = {"weather": "sky", "sky": "weather"}
    chosen = list(needed)
    others = [one for one in ABILITIES if one not in chosen]
    rng.shuffle(others)
    for other in others:
        if len(chosen) >= count:
            break
        if clash.get(other) not in chosen:
            chosen.append(other)
    rng.shuffle(chosen)
    taken: set[str] = set()
    return {ability: draw_tool(rng, ability, taken, usual) for ability in chosen}


def _schemas(tools: dict[str, Tool]) -> tuple[dict[str, Any], ...]:
    return tuple(tool.schema for tool in tools.values())


def tool_case(
    rng: Random,
    split: Split,
    turns: int,
    tools: int,
    chain: float,
    *,
    other: float = 0.2,
    usual: float = 0.5,
) -> Case:
    """Tool loops; `chain` is the share of two-step ones, `other` that of turns without a call.

    `usual` is the share of names in their usual spelling.
    """
    picked = rng.choice(CHAINS)
    box = draw_tools(rng, [picked.first, picked.second] if chain > 0 else [], max(tools, 1), usual)
    number = 1
    makers: list[Turn] = []
    for index in range(turns):
        last = index == turns - 1
        wanted: Split = split if last else "train"

        def make(number: int = number, last: bool = last) -> Turn:
            dice = rng.random()
            if dice < chain:
                return chain_turn(rng, picked, box[picked.first], box[picked.second], number)
            if dice > 1 - other and not last:
                return chat_turn(rng)
            if dice > 1 - other / 3:
                absent = [one for one in NEED_A_TOOL if one not in box]
                if "sky" in box and "weather" in absent:
                    absent.remove("weather")
                if absent:
                    return no_tool_turn(rng, rng.choice(absent))
            return tool_turn(rng, rng.choice(list(box.values())), number)

        makers.append(_of_split(make, wanted))
        number += 2
    return Case(makers[-1].task, rng.choice(SYSTEMS), _schemas(box), tuple(makers))


def mixed_case(
    rng: Random,
    split: Split,
    turns: int,
    facts: int,
    tools: int,
    filler: int = 0,
    usual: float = 0.5,
) -> Case:
    """Facts, tools and small talk in one conversation."""
    known = draw_facts(rng, facts)
    picked = rng.choice(CHAINS)
    linked = [picked.first, picked.second] if rng.random() < 0.3 else []
    box = draw_tools(rng, linked, tools, usual)
    has_chain = picked.first in box and picked.second in box
    makers: list[Callable[[str], Turn]] = []
    for index in range(turns):
        number = 1 + 2 * index

        def make(told: str, number: int = number) -> Turn:
            dice = rng.random()
            if told or dice < 0.4:
                return question_turn(rng, rng.choice(known), told)
            if dice < 0.5:
                return chat_turn(rng)
            if dice < 0.65 and has_chain:
                return chain_turn(rng, picked, box[picked.first], box[picked.second], number)
            return tool_turn(rng, rng.choice(list(box.values())), number)

        makers.append(make)
    system, made = _place_facts(rng, known, filler, makers, split)
    return Case("mixed", system, _schemas(box), tuple(made))

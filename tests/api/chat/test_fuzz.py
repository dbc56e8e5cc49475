"""Random mutations of good tool calls, against an oracle that reads whole text with expressions.

`make fuzz` runs many times the mutations of `make test`; FUZZ_MUTATIONS is their number, FUZZ_SEED
where they start. A finding names its seed.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from api.chat.events import Event, ToolArguments, ToolCallEnd, ToolCallStart, fold
from api.chat.json_text import NOT_JSON, parse_json
from api.chat.parser import Ending, OutputParser
from tests.api.chat.outputs import FIXTURES, block, invoke, joined, parameter

MUTATIONS = int(os.environ.get("FUZZ_MUTATIONS", "400"))
FIRST_SEED = int(os.environ.get("FUZZ_SEED", "1"))
BATCHES = 4

SCHEMAS = [{"name": "add", "parameters": {"properties": {"a": {"type": "number"}, "b": {}}}}]
SUBJECTS = [
    *(text for text, _ in FIXTURES),
    "I look it up.</think>Wait." + block(invoke("find", parameter("what", "käse > brot 2>&1"))),
    block(
        invoke("add", parameter("a", "1e5", False), parameter("b", '{"x": [null, "ü"]}', False)),
        invoke("now"),
        invoke("write", parameter("text", "line one\nline two\\ {emoji} 😀\n" * 5)),
    ),
]
SPLICES = [
    *(
        "</think>",
        "<think>",
        "\n",
        "\n\n",
        '"',
        ">",
        "<",
        "</",
        "｜DSML｜",
        "{",
        "}",
        "é😀",
        "\x00",
    ),
    *("<｜DSML｜function_calls>", "</｜DSML｜function_calls>", "</｜DSML｜invoke>"),
    *('<｜DSML｜invoke name="', '<｜DSML｜invoke name="f">\n', "</｜DSML｜parameter>"),
    *('<｜DSML｜parameter name="k" string="true">', ' string="false">', ' string="true">'),
    *("<function_calls>", '<invoke name="f">', "</invoke>", '{"a": 1}', "<｜User｜>", "🏴‍☠️"),
]

PARAMETER = re.compile(
    '<｜DSML｜parameter name="((?:(?!">|</?｜DSML｜).)*?)" string="(true|false)">'
    "(.*?)</｜DSML｜parameter>",
    re.DOTALL,
)
INVOKE_HEAD = re.compile('<｜DSML｜invoke name="([^"<\n]+)">')
INVOKE_END = re.compile("</｜DSML｜(?:invoke|function_calls)>")
SPACE = re.compile(r"\s*")


def mutated(text: str, random_: random.Random) -> str:
    for _ in range(random_.randint(1, 6)):
        at, to = sorted(random_.randint(0, len(text)) for _ in range(2))
        kind = random_.randrange(7)
        if kind == 0:
            text = text[:at] + text[to:]
        elif kind == 1:
            text = text[:at] + text[at : at + 1 + random_.randrange(30)] + text[at:]
        elif kind == 2:
            text = text[:at] + random_.choice(SPLICES) + text[at:]
        elif kind == 3:
            text = text[:at] + random_.choice(SPLICES) + text[at + 1 :]
        elif kind == 4:
            text = text[:at]
        elif kind == 5:
            text = text[:at] + text[at + 1 + random_.randrange(3) :]
        else:
            other = random_.choice(SUBJECTS)
            text = text[:at] + other[random_.randint(0, len(other)) :]
    return text


def mutations(batch: int) -> Iterator[tuple[int, str, random.Random]]:
    """Yields (seed, text, random source) of one batch."""
    for number in range(batch, MUTATIONS, BATCHES):
        seed = FIRST_SEED + number
        random_ = random.Random(seed)
        yield seed, mutated(random_.choice(SUBJECTS), random_), random_


def complete_invokes(text: str) -> list[tuple[str, Any]]:
    """The oracle: every call that stands in the text with all its parameters and its end."""
    found = []
    for head in INVOKE_HEAD.finditer(text):
        position, arguments, broken = head.end(), {}, False
        while True:
            position = SPACE.match(text, position).end()  # type: ignore[union-attr]
            given = PARAMETER.match(text, position)
            if given is None:
                break
            key, is_string, value = given.groups()
            parsed = parse_json(value)
            broken |= key in arguments
            arguments[key] = value if is_string == "true" or parsed is NOT_JSON else parsed
            position = given.end()
        if INVOKE_END.match(text, position) and not broken:
            found.append((head[1], arguments))
    return found


def run(pieces: Any, in_reasoning: bool, ending: Ending, lenient: bool) -> list[Event]:
    parser = OutputParser(
        in_reasoning,
        True,
        SCHEMAS if lenient else None,
        make_id=lambda index: f"call_{index}",
        lenient=lenient,
    )
    events = [event for piece in pieces for event in parser.feed(piece)]
    events += parser.finish(ending)
    whole = {event.index for event in events if isinstance(event, ToolCallEnd)}
    assert (parser.finish_reason == "tool_calls") == (bool(whole) and ending == "stop")
    return events


def bare(text: str) -> str:
    """The text without any </think>, those that appear when others are taken out included."""
    while "</think>" in text:
        text = text.replace("</think>", "")
    return text


def cut(text: str, random_: random.Random) -> list[str]:
    borders = sorted(random_.randint(0, len(text)) for _ in range(random_.randint(0, 12)))
    return [text[start:end] for start, end in pairwise([0, *borders, len(text)])]


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("batch", range(BATCHES))
def test_mutations_are_read_the_same_however_they_come(batch: int, lenient: bool) -> None:
    for seed, text, random_ in mutations(batch):
        in_reasoning = random_.random() < 0.5
        ending: Ending = random_.choice(["stop", "stop", "length", "abort"])  # type: ignore[assignment]
        events = run([text], in_reasoning, ending, lenient)
        expected = joined(events)
        cuts = cut(text, random_)
        assert joined(run(cuts, in_reasoning, ending, lenient)) == expected, (seed, text, cuts)
        arguments: dict[int, str] = {}
        ended: set[int] = set()
        for event in events:
            if isinstance(event, ToolCallStart):
                arguments[event.index] = ""
            elif isinstance(event, ToolArguments):
                assert event.index not in ended, seed
                arguments[event.index] += event.text
            elif isinstance(event, ToolCallEnd):
                ended.add(event.index)
        for index, document in arguments.items():
            value = parse_json(document)
            assert isinstance(value, dict) == (index in ended), (seed, text, document)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_no_call_that_was_not_completely_written_and_no_lost_text(batch: int) -> None:
    for seed, text, random_ in mutations(batch):
        in_reasoning = random_.random() < 0.5
        output = fold(run([text], in_reasoning, "stop", lenient=False))
        written = complete_invokes(text)
        for call in output.tool_calls:
            found = (call.name, json.loads(call.arguments))
            assert found in written, (seed, text, found)
        visible = output.reasoning + output.content
        if not output.tool_calls:
            assert bare(visible) == bare(text), (seed, text)
            continue
        kept = visible + "".join(failure.raw for failure in output.failures)
        for call in output.tool_calls:
            kept += call.name + call.arguments
            for key, value in json.loads(call.arguments).items():
                kept += f" {key} {value} "
        markup = "DSML function_calls invoke name parameter string true false think"
        for word in set(re.findall(r"\w+", text)) - set(markup.split()):
            assert word in kept, (seed, text, word)

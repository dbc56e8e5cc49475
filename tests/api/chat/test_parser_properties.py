"""What holds for every output, however it is cut into chunks."""

import json
import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.chat.events import (
    ContentDelta,
    ParsedOutput,
    ReasoningDelta,
    ToolArguments,
    ToolCallEnd,
    ToolCallStart,
    fold,
)
from api.chat.messages import Message, ToolCall
from api.chat.parser import Ending, OutputParser
from api.chat.rendering import render
from api.chat.template import Template
from tests.api.chat.outputs import (
    CITY,
    CLOSE,
    FIXTURES,
    INVOKE_END,
    OPEN,
    PARAMETER,
    block,
    events_of,
    joined,
    parse,
)


@pytest.mark.parametrize("ending", ["stop", "length"])
def test_every_split_of_every_fixture_gives_the_same(ending: Ending) -> None:
    for text, in_reasoning in FIXTURES:
        expected = joined(events_of([text], in_reasoning, ending)[0])
        assert joined(events_of(text, in_reasoning, ending)[0]) == expected
        for cut in range(len(text)):
            pieces = [text[:cut], text[cut:]]
            assert joined(events_of(pieces, in_reasoning, ending)[0]) == expected, (text, cut)


TAGS = re.findall(r"</?｜DSML｜[^>]*>|[^<]+|<", "".join(text for text, _ in FIXTURES))
SOUP = st.lists(
    st.sampled_from(
        [
            *sorted(set(TAGS)),
            *("</think>", "<think>", "\n", "\n\n", '"', ">", "<", "</", "｜DSML｜", "{", "é😀"),
            *(OPEN, CLOSE, INVOKE_END, '<｜DSML｜invoke name="', "</｜DSML｜parameter>"),
            *(CITY, PARAMETER, '<｜DSML｜invoke name="f">\n'),
        ]
    ),
    max_size=14,
).map("".join)
"""Output made of whole, broken and misplaced markup."""


def cut_up(text: str, cuts: list[int]) -> list[str]:
    borders = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[start:end] for start, end in pairwise(borders)]


ENDINGS = st.sampled_from(["stop", "length", "abort"])


@given(
    SOUP | st.sampled_from([text for text, _ in FIXTURES]),
    st.lists(st.integers(0, 10_000), max_size=12),
    st.booleans(),
    st.booleans(),
    ENDINGS,
)
def test_random_splits_give_the_same(
    text: str, cuts: list[int], in_reasoning: bool, tools: bool, ending: Ending
) -> None:
    expected = joined(events_of([text], in_reasoning, ending, tools)[0])
    assert joined(events_of(cut_up(text, cuts), in_reasoning, ending, tools)[0]) == expected
    assert joined(events_of(text, in_reasoning, ending, tools)[0]) == expected


@given(SOUP, st.booleans(), ENDINGS)
def test_only_complete_calls_have_whole_arguments(
    text: str, in_reasoning: bool, ending: Ending
) -> None:
    events, parser = events_of([text], in_reasoning, ending)
    arguments: dict[int, str] = {}
    complete: set[int] = set()
    for event in events:
        match event:
            case ToolCallStart(index=index):
                assert index == len(arguments), "indexes are dense and in order"
                arguments[index] = ""
            case ToolArguments(index=index, text=piece):
                assert index == len(arguments) - 1 and index not in complete
                arguments[index] += piece
            case ToolCallEnd(index=index):
                complete.add(index)
    for index, document in arguments.items():
        if index in complete:
            assert isinstance(json.loads(document), dict)
        else:
            with pytest.raises(json.JSONDecodeError):
                json.loads(document)
    assert parser.complete_calls == len(complete)
    assert (parser.finish_reason == "tool_calls") == (bool(complete) and ending == "stop")


@given(SOUP, st.booleans())
def test_no_text_is_lost(text: str, in_reasoning: bool) -> None:
    """Every letter of the output is in a channel, in a complete call or in a reported failure."""
    output = parse(text, in_reasoning)
    kept = output.reasoning + output.content + "".join(f.raw for f in output.failures)
    for call in output.tool_calls:
        parameters = "".join(f"{k}{v}" for k, v in json.loads(call.arguments).items())
        kept += f"functioncallinvokename{call.name}parameterstring{parameters}"
    for letter in "AéPxq":
        if letter in text:
            assert letter in kept
    if not output.tool_calls:
        visible = output.reasoning + output.content
        assert visible.replace("</think>", "") == text.replace("</think>", "")


@given(SOUP)
@example(block(CITY))
def test_without_tools_markup_is_text(text: str) -> None:
    output = fold(events_of([text], tools=False)[0])
    assert output.content == text.replace("</think>", "")
    assert not output.tool_calls and not output.failures


NAMES = st.text(alphabet="abcXYZ_-0123456789", min_size=1, max_size=12)
WORDS = st.text(alphabet=st.sampled_from("ab \n\t<>\"'\\/{}=｜é你😀DSML"), max_size=30)
KEYS = st.text(alphabet="abc_ é-.$", min_size=1, max_size=8)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)


@given(
    WORDS,
    WORDS,
    st.lists(st.tuples(NAMES, st.dictionaries(KEYS, JSON_VALUES, max_size=4)), max_size=3),
    st.booleans(),
    st.lists(st.integers(0, 10_000), max_size=8),
)
def test_what_was_rendered_is_read_back(
    reasoning: str,
    content: str,
    wanted: list[tuple[str, dict[str, object]]],
    thinking: bool,
    cuts: list[int],
) -> None:
    tool_calls = tuple(
        ToolCall(f"call_{index}", name, json.dumps(arguments, ensure_ascii=False))
        for index, (name, arguments) in enumerate(wanted)
    )
    message = Message("assistant", content, reasoning=reasoning, tool_calls=tool_calls)
    user = Message("user", "Q")
    segments = render([user, message], Template(), thinking=thinking)
    start = len(render([user], Template(), thinking=thinking))
    generated = "".join(segment.text for segment in segments[start:-1])
    output = fold(events_of(cut_up(generated, cuts), in_reasoning=thinking)[0])
    assert output == ParsedOutput(reasoning if thinking else "", content, tool_calls, ())


@given(SOUP, st.booleans(), st.booleans(), st.booleans(), st.data())
def test_text_taken_at_once_is_text_that_was_fed(
    text: str, in_reasoning: bool, tools: bool, lenient: bool, data: st.DataObject
) -> None:
    fed, quick = (OutputParser(in_reasoning, tools, make_id=str, lenient=lenient) for _ in range(2))
    while text:
        piece = text[: data.draw(st.integers(1, 6))]
        text = text[len(piece) :]
        kind = quick.at_once(piece)
        assert fed.feed(piece) == (quick.feed(piece) if kind is None else [kind(piece)])
        assert fed.held_characters == quick.held_characters
    assert fed.finish("stop") == quick.finish("stop")


def test_plain_text_is_taken_at_once() -> None:
    parser = OutputParser(in_reasoning=True, tools=True)
    assert parser.at_once("a thought") is ReasoningDelta
    assert parser.at_once("and <") is None
    parser.feed("</think>")
    assert parser.at_once("an answer") is ContentDelta
    parser.feed("\n")
    assert parser.at_once("x") is None, "the line feed waits for what comes"

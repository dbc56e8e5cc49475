import json
import re
from typing import Any

import pytest

from api.chat.events import (
    ContentDelta,
    ParsedOutput,
    ParseFailure,
    ToolArguments,
    ToolCallEnd,
    ToolCallStart,
    fold,
)
from api.chat.messages import ToolCall
from api.chat.parser import OutputParser, make_call_id
from tests.api.chat.outputs import (
    BROKEN,
    CITY,
    CITY_JSON,
    CLOSE,
    GOOD,
    INVOKE_END,
    OPEN,
    UNCLOSED,
    block,
    calls,
    events_of,
    invoke,
    joined,
    parameter,
    parse,
)


@pytest.mark.parametrize("name", GOOD)
def test_output(name: str) -> None:
    text, in_reasoning, reasoning, content, expected_calls, finish_reason = GOOD[name]
    events, parser = events_of([text], in_reasoning)
    output = fold(events)
    assert (output.reasoning, output.content) == (reasoning, content)
    assert calls(output) == expected_calls
    assert output.failures == ()
    assert parser.finish_reason == finish_reason
    assert parser.complete_calls == len(expected_calls)
    assert not parser.incomplete_reasoning


@pytest.mark.parametrize("name", BROKEN)
def test_broken_output(name: str) -> None:
    text, content, expected_calls, failures = BROKEN[name]
    events, parser = events_of([text])
    output = fold(events)
    assert output.content == content
    assert calls(output) == expected_calls
    assert [(failure.reason, failure.raw) for failure in output.failures] == failures
    for failure in output.failures:
        assert text[failure.offset :].startswith(failure.raw)
    assert parser.finish_reason == ("tool_calls" if expected_calls else "stop")


def test_ids_follow_the_order_of_calls() -> None:
    output = parse(block(invoke("now"), CITY))
    assert [call.id for call in output.tool_calls] == ["call_0", "call_1"]


LONG = "".join(f"line {number}: a > b && c < d\n" for number in range(2000))


def test_long_strings_stream_while_they_grow() -> None:
    parser = OutputParser(in_reasoning=False, tools=True)
    parser.feed(
        f'\n\n{OPEN}\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="a" string="true">'
    )
    streamed = 0
    for start in range(0, len(LONG), 50):
        piece = LONG[start : start + 50]
        events = parser.feed(piece)
        streamed += sum(len(event.text) for event in events if isinstance(event, ToolArguments))
        assert streamed >= start
    events = [*parser.feed(f"</｜DSML｜parameter>\n{INVOKE_END}\n{CLOSE}"), *parser.finish("stop")]
    assert isinstance(events[-1], ToolCallEnd)


def test_a_value_of_fifty_kilobytes() -> None:
    assert len(LONG) > 50_000
    output = parse(block(invoke("f", parameter("a", LONG))))
    assert json.loads(output.tool_calls[0].arguments) == {"a": LONG}


def test_text_is_held_only_while_it_may_be_markup() -> None:
    parser = OutputParser(in_reasoning=False, tools=True)
    assert parser.feed("A\n\n<") == [ContentDelta("A")]
    assert parser.held_characters == 3
    assert parser.feed("b") == [ContentDelta("\n\n<b")]
    assert parser.held_characters == 0


# Cut off by max_tokens.


@pytest.mark.parametrize(
    ("text", "in_reasoning", "expected"),
    [
        ("R", True, ParsedOutput("R", "", (), ())),
        ("R</thi", True, ParsedOutput("R</thi", "", (), ())),
        ("A\n\n", False, ParsedOutput("", "A\n\n", (), ())),
        ("A\n\n<｜DSML｜func", False, ParsedOutput("", "A", (), ())),
        (f"A\n\n{OPEN}\n<｜DSML｜inv", False, ParsedOutput("", "A", (), ())),
        (f'A\n\n{OPEN}\n<｜DSML｜invoke name="f', False, ParsedOutput("", "A", (), ())),
        (f"A\n\n{OPEN}\n{UNCLOSED}", False, ParsedOutput("", "A", (), ())),
        (
            f"A\n\n{OPEN}\n{CITY}\n{UNCLOSED}",
            False,
            ParsedOutput("", "A", (ToolCall("call_0", "weather", CITY_JSON),), ()),
        ),
    ],
)
def test_cut_off(text: str, in_reasoning: bool, expected: ParsedOutput) -> None:
    events, parser = events_of([text], in_reasoning, "length")
    assert fold(events) == expected
    assert parser.finish_reason == "length"
    assert not parser.incomplete_reasoning


def test_json_of_a_cut_off_call_stays_open() -> None:
    events, _ = events_of([f"{OPEN}\n{UNCLOSED} <"], ending="length")
    assert joined(events) == [ToolCallStart(0, "call_0", "f"), ToolArguments(0, '{"a": "x <')]


def test_reasoning_that_never_ends() -> None:
    events, parser = events_of(["R\n\n</"], in_reasoning=True)
    assert fold(events) == ParsedOutput("R\n\n</", "", (), ())
    assert parser.incomplete_reasoning
    assert parser.finish_reason == "stop"


def test_wrapped_arguments_are_unwrapped_by_the_schema() -> None:
    schemas = [{"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}}]
    text = block(invoke("weather", parameter("arguments", CITY_JSON, False)))
    assert calls(fold(events_of(text, schemas=schemas)[0])) == [("weather", CITY_JSON)]
    assert calls(fold(events_of(text)[0])) == [("weather", f'{{"arguments": {CITY_JSON}}}')]


@pytest.mark.parametrize("schema", [{}, {"name": "weather"}, {"name": "weather", "parameters": []}])
def test_schemas_may_be_anything(schema: dict[str, Any]) -> None:
    assert calls(fold(events_of([block(CITY)], schemas=[schema])[0])) == [("weather", CITY_JSON)]


def test_an_ended_output_takes_no_more() -> None:
    parser = OutputParser(in_reasoning=False, tools=True)
    parser.finish("stop")
    with pytest.raises(RuntimeError):
        parser.feed("x")
    with pytest.raises(RuntimeError):
        parser.finish("stop")


def test_call_ids_are_in_form_and_unguessable() -> None:
    ids = [make_call_id(index) for index in range(100)]
    assert all(re.fullmatch(r"call_\d\d_[A-Za-z0-9]{24}", call_id) for call_id in ids)
    assert ids[7].startswith("call_07_")
    assert len({call_id[8:] for call_id in ids}) == 100


def test_failures_come_before_their_text() -> None:
    events, _ = events_of([block(invoke(""))])
    failure = next(event for event in events if isinstance(event, ParseFailure))
    assert events[events.index(failure) + 1] == ContentDelta(failure.raw)

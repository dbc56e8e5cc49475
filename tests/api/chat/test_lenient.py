"""The lenient reading of tool calls: what it takes beyond the strict one, and what not."""

from __future__ import annotations

from typing import Any

import pytest

from api.chat.events import ParsedOutput, fold
from api.chat.parser import Ending, OutputParser
from tests.api.chat.outputs import CITY, CITY_JSON, FIXTURES, GOOD, block, calls, joined

SCHEMAS = [
    {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "either": {"type": ["number", "string"]},
                "anything": {},
            },
        },
    }
]
PLAIN = block(CITY).replace("｜DSML｜", "")


def run(
    pieces: Any, in_reasoning: bool = False, ending: Ending = "stop", lenient: bool = True
) -> Any:
    parser = OutputParser(
        in_reasoning, True, SCHEMAS, make_id=lambda index: f"call_{index}", lenient=lenient
    )
    events = [event for piece in pieces for event in parser.feed(piece)]
    return [*events, *parser.finish(ending)], parser


def parse(text: str, in_reasoning: bool = False, lenient: bool = True) -> ParsedOutput:
    return fold(run([text], in_reasoning, lenient=lenient)[0])


def invoke(body: str, marker: str = "｜DSML｜") -> str:
    return block(f'<｜DSML｜invoke name="weather">\n{body}\n</｜DSML｜invoke>').replace(
        "｜DSML｜", marker
    )


def head(name: str, string: str, value: str, marker: str = "｜DSML｜") -> str:
    return f'<{marker}parameter name="{name}"{string}>{value}</{marker}parameter>'


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        (PLAIN, CITY_JSON),
        (PLAIN.replace("<function_calls>\n", "").replace("\n</function_calls>", ""), CITY_JSON),
        (invoke(head("city", "", "Paris")), CITY_JSON),
        (invoke(head("days", "", "3")), '{"days": 3}'),
        (invoke(head("days", "", "three")), '{"days": "three"}'),
        (invoke(head("unknown", "", "3")), '{"unknown": "3"}'),
        (invoke(head("days", ' string="true"', "3")), '{"days": 3}'),
        (invoke(head("city", ' string="true"', "3")), '{"city": "3"}'),
        (invoke(head("either", ' string="true"', "3")), '{"either": "3"}'),
        (invoke(head("anything", ' string="true"', "3")), '{"anything": "3"}'),
        (invoke('{"city": "Paris"}'), CITY_JSON),
        (invoke('{"city": "Paris", "days": [1, {}]}'), '{"city": "Paris", "days": [1, {}]}'),
        (invoke("{}", marker=""), "{}"),
        (invoke(head("city", "", "Paris", marker="")), CITY_JSON),
        (invoke("", marker=""), "{}"),
    ],
)
def test_it_reads_more(text: str, arguments: str) -> None:
    output = parse(text)
    assert calls(output) == [("weather", arguments)]
    assert output.failures == () and output.content == ""
    assert run([text])[1].finish_reason == "tool_calls"
    # Streamed in any cut it is the same.
    expected = joined(run([text])[0])
    assert joined(run(text)[0]) == expected
    for cut in range(len(text)):
        assert joined(run([text[:cut], text[cut:]])[0]) == expected


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        invoke(head("city", "", "Paris")),
        invoke('{"city": "Paris"}'),
        invoke(head("city", "", "Paris", marker="")),
    ],
)
def test_the_strict_reading_takes_none_of_it(text: str) -> None:
    output = parse(text, lenient=False)
    assert not output.tool_calls and output.content == text


@pytest.mark.parametrize("name", [name for name in GOOD if "<invoke" not in GOOD[name][0]])
def test_what_is_good_reads_the_same(name: str) -> None:
    text, in_reasoning, *_ = GOOD[name]
    assert parse(text, in_reasoning) == parse(text, in_reasoning, lenient=False)


@pytest.mark.parametrize(
    "text",
    [
        invoke('{"city": "Paris"'),
        invoke("[1]"),
        invoke('{"city": NaN}'),
        invoke(head("city", ' type="string"', "Paris")),
        invoke(head("city", "", "Paris") + head("city", "", "Rome")),
        invoke(head("city", "", "Paris") + '{"days": 1}'),
        PLAIN[: PLAIN.index("</invoke>")],
    ],
)
def test_what_is_not_whole_is_still_no_call(text: str) -> None:
    output = parse(text)
    assert not output.tool_calls and output.failures
    assert output.content.strip() == text.strip()


def test_a_value_may_hold_the_other_spelling() -> None:
    value = "</parameter></invoke>"
    output = parse(invoke(head("city", ' string="true"', value)))
    assert calls(output) == [("weather", f'{{"city": "{value}"}}')]


def test_a_thought_may_name_a_tag() -> None:
    output = parse('I could write <invoke name="weather">, but no.</think>No.', in_reasoning=True)
    assert "<invoke" in output.reasoning and output.content == "No." and not output.failures


@pytest.mark.parametrize("ending", ["stop", "length"])
def test_every_split_of_every_fixture_gives_the_same(ending: Ending) -> None:
    for text, in_reasoning in FIXTURES:
        expected = joined(run([text], in_reasoning, ending)[0])
        assert joined(run(text, in_reasoning, ending)[0]) == expected
        for cut in range(0, len(text), 3):
            pieces = [text[:cut], text[cut:]]
            assert joined(run(pieces, in_reasoning, ending)[0]) == expected, (text, cut)

"""Outputs of a model, good and broken, with what the parser must make of them."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from api.chat.events import (
    ContentDelta,
    Event,
    ParsedOutput,
    ReasoningDelta,
    ToolArguments,
    fold,
)
from api.chat.parser import Ending, OutputParser

OPEN, CLOSE = "<｜DSML｜function_calls>", "</｜DSML｜function_calls>"
INVOKE_END = "</｜DSML｜invoke>"


def invoke(name: str, *parameters: str) -> str:
    body = "\n".join(parameters)
    return f'<｜DSML｜invoke name="{name}">\n{body}\n{INVOKE_END}'


def parameter(key: str, value: str, is_string: bool = True) -> str:
    flag = "true" if is_string else "false"
    return f'<｜DSML｜parameter name="{key}" string="{flag}">{value}</｜DSML｜parameter>'


def block(*invokes: str) -> str:
    return f"\n\n{OPEN}\n" + "\n".join(invokes) + f"\n{CLOSE}"


CITY = invoke("weather", parameter("city", "Paris"))
CITY_JSON = '{"city": "Paris"}'


def events_of(
    pieces: Iterable[str],
    in_reasoning: bool = False,
    ending: Ending = "stop",
    tools: bool = True,
    schemas: Sequence[dict[str, Any]] | None = None,
) -> tuple[list[Event], OutputParser]:
    parser = OutputParser(in_reasoning, tools, schemas, make_id=lambda index: f"call_{index}")
    events = [event for piece in pieces for event in parser.feed(piece)]
    return [*events, *parser.finish(ending)], parser


def joined(events: Iterable[Event]) -> list[Event]:
    """The events with neighbouring deltas of one channel made one: what chunks must not change."""
    merged: list[Event] = []
    for event in events:
        last = merged[-1] if merged else None
        if isinstance(event, ReasoningDelta | ContentDelta | ToolArguments):
            assert event.text, "an empty delta says nothing"
            if isinstance(last, ReasoningDelta | ContentDelta | ToolArguments) and (
                type(last) is type(event)
                and getattr(last, "index", None) == getattr(event, "index", None)
            ):
                merged[-1] = msgspec.structs.replace(last, text=last.text + event.text)
                continue
        merged.append(event)
    return merged


def parse(text: str, in_reasoning: bool = False, ending: Ending = "stop") -> ParsedOutput:
    return fold(events_of([text], in_reasoning, ending)[0])


def calls(output: ParsedOutput) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in output.tool_calls]


# name: output, starts in reasoning, reasoning, content, calls, finish reason
GOOD: dict[str, tuple[str, bool, str, str, list[tuple[str, str]], str]] = {
    "answer": ("Hello", False, "", "Hello", [], "stop"),
    "nothing": ("", False, "", "", [], "stop"),
    "reasoned answer": ("R\n</think>\n\nA", True, "R\n", "\n\nA", [], "stop"),
    "empty reasoning": ("</think>A", True, "", "A", [], "stop"),
    "call": (block(CITY), False, "", "", [("weather", CITY_JSON)], "tool_calls"),
    "call with trailing space": (
        block(CITY) + "\n ",
        False,
        "",
        "",
        [("weather", CITY_JSON)],
        "tool_calls",
    ),
    "reasoning, content, call": (
        f"R</think>See.{block(CITY)}",
        True,
        "R",
        "See.",
        [("weather", CITY_JSON)],
        "tool_calls",
    ),
    "one separator is taken": (
        f"See.\n{block(CITY)}",
        False,
        "",
        "See.\n",
        [("weather", CITY_JSON)],
        "tool_calls",
    ),
    "no separator": (
        f"See.{block(CITY)[2:]}",
        False,
        "",
        "See.",
        [("weather", CITY_JSON)],
        "tool_calls",
    ),
    "call without arguments": (
        block(invoke("now")),
        False,
        "",
        "",
        [("now", "{}")],
        "tool_calls",
    ),
    "call without even an empty line": (
        f'\n\n{OPEN}\n<｜DSML｜invoke name="now">{INVOKE_END}\n{CLOSE}',
        False,
        "",
        "",
        [("now", "{}")],
        "tool_calls",
    ),
    "parallel calls": (
        block(invoke("now"), CITY, CITY),
        False,
        "",
        "",
        [("now", "{}"), ("weather", CITY_JSON), ("weather", CITY_JSON)],
        "tool_calls",
    ),
    "all types": (
        block(
            invoke(
                "f",
                parameter("n", "1e5", False),
                parameter("z", "null", False),
                parameter("t", "null"),
                parameter("o", '{"a":[1,"é"]}', False),
                parameter("bare", "Paris", False),
                parameter("e", ""),
            )
        ),
        False,
        "",
        "",
        [
            (
                "f",
                '{"n": 1e5, "z": null, "t": "null", "o": {"a":[1,"é"]}, "bare": "Paris", "e": ""}',
            )
        ],
        "tool_calls",
    ),
    "markup inside a value": (
        block(invoke("sh", parameter("c", 'a 2>&1 <b> "q"\n\t\\ 😀 </｜DSML｜x> <｜DSML｜'))),
        False,
        "",
        "",
        [("sh", '{"c": "a 2>&1 <b> \\"q\\"\\n\\t\\\\ 😀 </｜DSML｜x> <｜DSML｜"}')],
        "tool_calls",
    ),
    "parameter name with quotes and brackets": (
        block(invoke("f", parameter('a"<b\nc', "1", False))),
        False,
        "",
        "",
        [("f", '{"a\\"<b\\nc": 1}')],
        "tool_calls",
    ),
    "calls inside reasoning close it": (
        f"R{block(CITY)}",
        True,
        "R",
        "",
        [("weather", CITY_JSON)],
        "tool_calls",
    ),
    "bare call": (f"See.\n\n{CITY}", False, "", "See.", [("weather", CITY_JSON)], "tool_calls"),
    "bare call inside reasoning": (
        f"R{CITY}",
        True,
        "R",
        "",
        [("weather", CITY_JSON)],
        "tool_calls",
    ),
    "second end of thinking": ("R</think>A</think>B", True, "R", "AB", [], "stop"),
    "end of thinking in chat mode": ("</think>A", False, "", "A", [], "stop"),
    "wrapper never closed": (
        block(CITY).removesuffix(f"\n{CLOSE}"),
        False,
        "",
        "",
        [("weather", CITY_JSON)],
        "tool_calls",
    ),
    "call never closed, wrapper is": (
        block(CITY).replace(f"\n{INVOKE_END}", ""),
        False,
        "",
        "",
        [("weather", CITY_JSON)],
        "tool_calls",
    ),
    "text like markup": (
        '2 < 3\n\n<b> <｜DSML <｜User｜> <function_calls>\n<invoke name="f">',
        False,
        "",
        '2 < 3\n\n<b> <｜DSML <｜User｜> <function_calls>\n<invoke name="f">',
        [],
        "stop",
    ),
    "held to the end": ("2 <", False, "", "2 <", [], "stop"),
    "separator held to the end": (
        "A\n\n<｜DSML｜function_",
        False,
        "",
        "A\n\n<｜DSML｜function_",
        [],
        "stop",
    ),
    "unknown function": (block(invoke("x y")), False, "", "", [("x y", "{}")], "tool_calls"),
}

PARAMETER = '<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>'

# name: output, content, calls, (reason, raw)
BROKEN: dict[str, tuple[str, str, list[tuple[str, str]], list[tuple[str, str]]]] = {}


def broken(name: str, body: str, reason: str) -> None:
    """A block of one broken call, alone and beside a good one."""
    alone = f"A{block(body)}"
    BROKEN[name] = (
        alone,
        alone,
        [],
        [(reason, alone.removeprefix("A").removesuffix(f"\n{CLOSE}"))],
    )
    BROKEN[f"{name}, then a good call"] = (
        f"A{block(body, CITY)}",
        f"A\n\n{OPEN}\n{body}",
        [("weather", CITY_JSON)],
        [(reason, f"\n\n{OPEN}\n{body}")],
    )
    BROKEN[f"{name}, after a good call"] = (
        f"A{block(CITY, body)}",
        f"A\n{body}\n{CLOSE}",
        [("weather", CITY_JSON)],
        [(reason, f"\n{body}")],
    )


broken(
    "no string attribute",
    invoke("f", '<｜DSML｜parameter name="a">1</｜DSML｜parameter>'),
    "parameter without a string attribute",
)
broken(
    "odd string attribute",
    invoke("f", '<｜DSML｜parameter name="a" string="True">1</｜DSML｜parameter>'),
    "parameter without a string attribute",
)
broken(
    "unclosed parameter name",
    invoke("f", f'<｜DSML｜parameter name="a {PARAMETER}'),
    "parameter without a string attribute",
)
broken(
    "parameter without the marker",
    invoke("f", '<parameter name="a" string="true">1</parameter>'),
    "neither a parameter nor the end of the call",
)
broken("JSON body", invoke("f", '{"city": "Paris"}'), "neither a parameter nor the end of the call")
broken(
    "text after a good parameter",
    invoke("f", PARAMETER, "and more"),
    "neither a parameter nor the end of the call",
)
broken("duplicate parameter", invoke("f", PARAMETER, PARAMETER), "duplicate parameter 'city'")
broken("empty name", invoke(""), "malformed function name")
broken("odd name", invoke('a" b'), "malformed function name")
broken("unclosed name", invoke("a").replace('a">', "a>"), "malformed function name")

UNCLOSED = '<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="a" string="true">x'
BROKEN |= {
    "unfinished value": (
        f"A\n\n{OPEN}\n{UNCLOSED}",
        f"A\n\n{OPEN}\n{UNCLOSED}",
        [],
        [("unfinished tool call", f"\n\n{OPEN}\n{UNCLOSED}")],
    ),
    "unfinished call after a good one": (
        f'\n\n{OPEN}\n{CITY}\n<｜DSML｜invoke name="f">\n',
        '\n<｜DSML｜invoke name="f">\n',
        [("weather", CITY_JSON)],
        [("unfinished tool call", '\n<｜DSML｜invoke name="f">\n')],
    ),
    "a call opens inside a call": (
        block(f'<｜DSML｜invoke name="f">\n{CITY}'),
        f'\n\n{OPEN}\n<｜DSML｜invoke name="f">\n',
        [("weather", CITY_JSON)],
        [
            (
                "neither a parameter nor the end of the call",
                f'\n\n{OPEN}\n<｜DSML｜invoke name="f">\n',
            )
        ],
    ),
    "empty block": (
        f"A\n\n{OPEN}\n{CLOSE}B",
        f"A\n\n{OPEN}\n{CLOSE}B",
        [],
        [("a block without a tool call", f"\n\n{OPEN}\n{CLOSE}")],
    ),
    "block without the marker inside": (
        f'\n\n{OPEN}\n<invoke name="f">\n</invoke>\n{CLOSE}',
        f'\n\n{OPEN}\n<invoke name="f">\n</invoke>\n{CLOSE}',
        [],
        [("a block without a tool call", f'\n\n{OPEN}\n<invoke name="f">\n</invoke>\n{CLOSE}')],
    ),
    "block that only opens": (
        f"\n\n{OPEN}\n",
        f"\n\n{OPEN}\n",
        [],
        [("a block without a tool call", f"\n\n{OPEN}\n")],
    ),
    "text between calls": (
        block(CITY, "and", CITY),
        "\nand\n",
        [("weather", CITY_JSON)] * 2,
        [("text between calls", "\nand\n")],
    ),
    "text after the last call": (
        block(CITY, "and"),
        f"\nand\n{CLOSE}",
        [("weather", CITY_JSON)],
        [("text between calls", f"\nand\n{CLOSE}")],
    ),
    "text after the calls": (
        f"{block(CITY)}\nDone.",
        "",
        [("weather", CITY_JSON)],
        [("text after the tool calls", "\nDone.")],
    ),
    "text after a broken block": (
        f"{block(invoke(''))}\nDone.{block(CITY)}",
        f"{block(invoke(''))}\nDone.",
        [("weather", CITY_JSON)],
        [("malformed function name", block(invoke("")).removesuffix(f"\n{CLOSE}"))],
    ),
}

FIXTURES = [(text, in_reasoning) for text, in_reasoning, *_ in GOOD.values()] + [
    (prefix + text, bool(prefix)) for text, *_ in BROKEN.values() for prefix in ("", "R</think>")
]

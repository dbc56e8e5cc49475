"""What the output parser reports, and how the reports add up to a message."""

from collections.abc import Iterable

import msgspec

from api.chat.messages import ToolCall


class ReasoningDelta(msgspec.Struct, frozen=True):
    """More reasoning text."""

    text: str


class ContentDelta(msgspec.Struct, frozen=True):
    """More visible text."""

    text: str


class ToolCallStart(msgspec.Struct, frozen=True):
    """A call began. Indexes count from 0 in order of appearance, broken calls included."""

    index: int
    id: str
    name: str


class ToolArguments(msgspec.Struct, frozen=True):
    """More JSON text of a call's arguments. Before the call ends they never form a document."""

    index: int
    text: str


class ToolCallEnd(msgspec.Struct, frozen=True):
    """The model wrote the call completely. A call without this event must not be executed."""

    index: int


class ParseFailure(msgspec.Struct, frozen=True):
    """Output that breaks the format: why, the character where it starts, and its text.

    Unless it stands after completed calls, ``raw`` follows as a ContentDelta of its own: consumers
    show that, and never ``raw`` itself.
    """

    reason: str
    offset: int
    raw: str


Event = ReasoningDelta | ContentDelta | ToolCallStart | ToolArguments | ToolCallEnd | ParseFailure


class ParsedOutput(msgspec.Struct, frozen=True):
    """A whole output. ``tool_calls`` holds the calls the model wrote completely, in order."""

    reasoning: str
    content: str
    tool_calls: tuple[ToolCall, ...]
    failures: tuple[ParseFailure, ...]


def fold(events: Iterable[Event]) -> ParsedOutput:
    """Returns the message that the events describe: the non-streamed form of the same output."""
    reasoning: list[str] = []
    content: list[str] = []
    starts: dict[int, ToolCallStart] = {}
    arguments: dict[int, list[str]] = {}
    tool_calls: list[ToolCall] = []
    failures: list[ParseFailure] = []
    for event in events:
        match event:
            case ReasoningDelta(text=text):
                reasoning.append(text)
            case ContentDelta(text=text):
                content.append(text)
            case ToolCallStart(index=index):
                starts[index] = event
                arguments[index] = []
            case ToolArguments(index=index, text=text):
                arguments[index].append(text)
            case ToolCallEnd(index=index):
                start = starts[index]
                tool_calls.append(ToolCall(start.id, start.name, "".join(arguments[index])))
            case ParseFailure():
                failures.append(event)
    return ParsedOutput("".join(reasoning), "".join(content), tuple(tool_calls), tuple(failures))

"""Messages to prompt segments: the grammar of the DeepSeek-V3.2 format.

The token that opens or declines reasoning (``<think>`` or ``</think>``) belongs to the message
before it, a user turn or a group of tool results. An assistant message therefore starts without it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from api.chat.json_text import to_json
from api.chat.markers import ASSISTANT, BOS, DSML, EOS, THINK_END, THINK_START, USER
from api.chat.messages import (
    Message,
    PromptError,
    ToolCall,
    Written,
    last_user,
    parse_arguments,
)
from api.chat.template import Piece, Template
from scheduler.retention import SpanKind, keeps_reasoning


class Segment(NamedTuple):
    """A stretch of the prompt: its text, what it is to retention, and whether it is one token."""

    text: str
    kind: SpanKind
    control: bool
    token_ids: tuple[int, ...] = ()
    """Tokens that stand here as they are; the text is empty then."""


def render(
    messages: Sequence[Message],
    template: Template,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    response_schema: Mapping[str, Any] | None = None,
    thinking: bool,
    started: Message | None = None,
) -> list[Segment]:
    """Returns the prompt of a normalised conversation (see messages.normalise_history).

    What a message has the written tokens of is not rendered again.
    ``tools`` are the raw inner ``function`` objects of the request; their block and that of the
    ``response_schema`` end the system message, an empty one if there is none. A conversation whose
    last message is from the assistant ends in EOS: a training target, not a generation prompt.
    ``started`` is the beginning of the answer to all that, and has no end: its reasoning stays open
    as long as it has no content.

    Raises PromptError for call arguments that are not a JSON object, TemplateError when the
    checkpoint ships no text for tools or response formats.
    """
    opens_turn = last_user(messages)
    writer = _Writer()
    writer.control(BOS, "stable")
    system = 1 if messages and messages[0].role == "system" else 0
    if system:
        writer.text(messages[0].content, "stable")
    if tools:
        writer.text("\n\n", "stable")
        writer.pieces(template.tools_pieces(tools), "stable")
    if response_schema is not None:
        writer.text("\n\n", "stable")
        writer.pieces(template.response_format_pieces(response_schema), "stable")
    for index, message in enumerate(messages[system:], start=system):
        # Chat mode and everything up to the last user message only ever grow at the end.
        running = keeps_reasoning(index, opens_turn, thinking)
        if message.role == "user":
            kind: SpanKind = "tool" if running else "stable"
            writer.control(USER, kind)
            writer.text(message.content, kind)
            writer.control(ASSISTANT, kind)
            writer.opener(thinking and index >= opens_turn)
        elif message.role == "assistant":
            _write_assistant(writer, message, f"messages[{index}]", running)
        elif message.role == "tool":
            first = index == 0 or messages[index - 1].role != "tool"
            last = index + 1 == len(messages) or messages[index + 1].role != "tool"
            _write_result(writer, message, first, last, running)
        else:
            raise PromptError(
                "A system message must stand before all other messages.", f"messages[{index}].role"
            )
    if started is not None:
        _write_start(writer, started, keeps_reasoning(len(messages), opens_turn, thinking))
    return writer.segments


class _Writer:
    """Collects segments, skipping empty text."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []

    def text(self, text: str, kind: SpanKind) -> None:
        if text:
            self.segments.append(Segment(text, kind, False))

    def control(self, marker: str, kind: SpanKind) -> None:
        self.segments.append(Segment(marker, kind, True))

    def pieces(self, pieces: Sequence[Piece], kind: SpanKind) -> None:
        self.segments.extend(Segment(piece.text, kind, piece.control) for piece in pieces)

    def tokens(self, token_ids: tuple[int, ...], kind: SpanKind) -> None:
        if token_ids:
            self.segments.append(Segment("", kind, False, token_ids))

    def opener(self, reasoning: bool) -> None:
        # An open one is not stable: the next user message flips it.
        if reasoning:
            self.control(THINK_START, "reasoning")
        else:
            self.control(THINK_END, "stable")

    def tag(self, opening: str, rest: str, kind: SpanKind) -> None:
        self.text(opening, kind)
        self.control(DSML, kind)
        self.text(rest, kind)


def _write_assistant(writer: _Writer, message: Message, param: str, running: bool) -> None:
    tool_kind: SpanKind = "tool" if running else "stable"
    answer_kind: SpanKind = "answer" if running else "stable"
    written = message.written or Written()
    if running and written.reasoning is not None:
        writer.tokens(written.reasoning, "reasoning")
    elif running:
        writer.text(message.reasoning or "", "reasoning")
        writer.control(THINK_END, "reasoning")
    if written.rest is not None:
        writer.tokens(written.rest, tool_kind if message.tool_calls else answer_kind)
        return
    writer.text(message.content, answer_kind)
    if message.tool_calls:
        _write_calls(writer, message.tool_calls, param, tool_kind)
    writer.control(EOS, tool_kind if message.tool_calls else answer_kind)


def _write_start(writer: _Writer, message: Message, running: bool) -> None:
    if running:
        writer.text(message.reasoning or "", "reasoning")
        if message.content:
            writer.control(THINK_END, "reasoning")
    writer.text(message.content, "answer" if running else "stable")


def _write_calls(writer: _Writer, calls: Sequence[ToolCall], param: str, kind: SpanKind) -> None:
    writer.tag("\n\n<", "function_calls>\n", kind)
    for position, call in enumerate(calls):
        try:
            arguments = parse_arguments(call.arguments)
        except ValueError as error:
            raise PromptError(
                f"The arguments must be a JSON object: {error}.",
                f"{param}.tool_calls[{position}].function.arguments",
            ) from error
        writer.tag("<", f'invoke name="{call.name}">\n', kind)
        for number, (key, value) in enumerate(arguments.items()):
            is_string = isinstance(value, str)
            flag = "true" if is_string else "false"
            writer.tag("\n<" if number else "<", f'parameter name="{key}" string="{flag}">', kind)
            writer.text(value if is_string else to_json(value), kind)
            writer.tag("</", "parameter>", kind)
        # Without arguments an empty line remains between the two tags.
        writer.tag("\n</", "invoke>\n", kind)
    writer.tag("</", "function_calls>", kind)


def _write_result(
    writer: _Writer, message: Message, first: bool, last: bool, running: bool
) -> None:
    kind: SpanKind = "tool" if running else "stable"
    if first:
        writer.text("\n\n<function_results>", kind)
    writer.text("\n<result>", kind)
    writer.text(message.content, kind)
    writer.text("</result>", kind)
    if last:
        writer.text("\n</function_results>\n\n", kind)
        writer.opener(running)

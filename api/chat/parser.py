"""Generated text to reasoning, content and tool calls: one state machine for all three.

It works on text, never on token ids, and what it reports is a function of the text alone: how the
text was cut into chunks changes where deltas are cut, and nothing else.

Strict: a call counts only when the model wrote all of it. What breaks the format is reported and
handed on as content, so that no text is lost and no half-written call can be executed. A call
streams while it is written; until it is complete its arguments are not a JSON document, because
their opening brace is sent first and their closing brace last.
"""

import re
import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from api.chat.arguments import ArgumentsWriter
from api.chat.events import (
    ContentDelta,
    Event,
    ParseFailure,
    ReasoningDelta,
    ToolArguments,
    ToolCallEnd,
    ToolCallStart,
)
from api.chat.markers import DSML, THINK_END
from api.chat.scanner import Scanner

Ending = Literal["stop", "length", "abort", "error"]

CALLS_OPEN = f"<{DSML}function_calls>"
CALLS_CLOSE = f"</{DSML}function_calls>"
INVOKE_OPEN = f'<{DSML}invoke name="'
INVOKE_CLOSE = f"</{DSML}invoke>"
PARAMETER_OPEN = f'<{DSML}parameter name="'
PARAMETER_CLOSE = f"</{DSML}parameter>"
SEPARATOR = "\n\n"
"""Between content and calls; part of neither."""

_CALL_OPENERS = (SEPARATOR + CALLS_OPEN, CALLS_OPEN, SEPARATOR + INVOKE_OPEN, INVOKE_OPEN)
_TEXT = Scanner(THINK_END)
_TEXT_OR_CALLS = Scanner(THINK_END, *_CALL_OPENERS)
_BETWEEN_CALLS = Scanner(INVOKE_OPEN, CALLS_CLOSE)
_INSIDE_CALL = (PARAMETER_OPEN, INVOKE_CLOSE, CALLS_CLOSE)
_VALUE = Scanner(PARAMETER_CLOSE)
_BROKEN_CALL = Scanner(INVOKE_CLOSE, INVOKE_OPEN, CALLS_CLOSE)
_WHITESPACE = re.compile(r"\s*")
_NAME = re.compile(r'[^"<\n]*')
_PARAMETER_HEAD_END = re.compile(f'">|</?{DSML}')
_STRING_TRUE = '" string="true">'
_STRING_FALSE = '" string="false">'

LONGEST_NAME = 1000
"""Characters of a function or parameter name; each new token scans the pending one again."""

_ID_ALPHABET = string.ascii_letters + string.digits


def make_call_id(index: int) -> str:
    """Returns an unguessable id in DeepSeek's form: ``call_00_`` and 24 random alphanumerics."""
    return f"call_{index:02d}_" + "".join(secrets.choice(_ID_ALPHABET) for _ in range(24))


class OutputParser:
    """Parses one output, fed in pieces of any size.

    ``in_reasoning``: the prompt ended in ``<think>`` (Prompt.in_reasoning; the request's own wish
    does not matter). ``tools``: DSML is markup; otherwise it is text like any other.
    ``tool_schemas``: the inner ``function`` objects of the request, used to recognise a call whose
    only parameter wraps the real arguments. ``make_id``: index of a call -> its id.
    """

    def __init__(
        self,
        in_reasoning: bool,
        tools: bool,
        tool_schemas: Sequence[Mapping[str, Any]] | None = None,
        make_id: Callable[[int], str] = make_call_id,
    ) -> None:
        self.complete_calls = 0
        """Calls that were reported with ToolCallEnd."""
        self.incomplete_reasoning = False
        """The output ended by itself, but its reasoning did not."""
        self._properties = _properties_by_name(tool_schemas or ())
        self._make_id = make_id
        self._terminals = _TEXT_OR_CALLS if tools else _TEXT
        self._state: Callable[[], bool] = self._reasoning if in_reasoning else self._content
        self._ending: Ending | None = None
        self._events: list[Event] = []
        self._buffer = ""
        self._cursor = 0
        self._consumed = 0  # characters of the output before the buffer
        self._started_calls = 0
        self._arguments = ArgumentsWriter(None)
        # Markup not yet accounted for: it becomes content when what it belongs to is broken.
        self._raw: list[str] = []
        self._raw_start = 0
        self._gap_has_text = False
        self._block_is_empty = True
        self._last_call_failed = False
        self._failure_reason = ""

    @property
    def held_characters(self) -> int:
        """How many of the characters fed so far wait for the next ones to be told apart."""
        return len(self._buffer)

    @property
    def finish_reason(self) -> Literal["stop", "length", "tool_calls"]:
        """The ``finish_reason`` of the choice; to be read after :meth:`finish`."""
        if self._ending == "length":
            return "length"
        return "tool_calls" if self.complete_calls and self._ending == "stop" else "stop"

    def feed(self, text: str) -> list[Event]:
        """Returns the events that the next piece of output settles."""
        if self._ending is not None:
            raise RuntimeError("the output has ended")
        self._buffer += text
        while self._state():
            pass
        self._consumed += self._cursor
        self._buffer = self._buffer[self._cursor :]
        self._cursor = 0
        return self._take_events()

    def finish(self, reason: Ending) -> list[Event]:
        """Returns the last events, releasing what was held back.

        After ``stop`` the model meant to be done: an unfinished call is a parse failure. After any
        other reason it was cut off, and an unfinished call is dropped, its JSON left open.
        """
        if self._ending is not None:
            raise RuntimeError("the output has ended")
        self._ending = reason
        natural = reason == "stop"
        held = self._buffer
        if self._state in (self._reasoning, self._content):
            if natural or f"<{DSML}" not in held:
                self._emit_text(held)
            self.incomplete_reasoning = natural and self._state == self._reasoning
        elif self._state == self._between_calls:
            self._keep(len(held))
            broken = self._block_is_empty or held.strip() != ""
            if self._gap_has_text or (natural and broken):
                self._report(
                    "a block without a tool call" if self._block_is_empty else "text between calls"
                )
            elif natural and self._last_call_failed:
                self._release_raw()
        elif self._state == self._after_calls:
            self._keep(len(held))
            raw = "".join(self._raw)
            if raw.strip():
                self._events.append(ParseFailure("text after the tool calls", self._raw_start, raw))
        elif self._state == self._broken_call:
            self._keep(len(held))
            self._report(self._failure_reason)
        elif natural:
            self._keep(len(held))
            self._report("unfinished tool call")
        elif self._state == self._parameter_value and f"</{DSML}" not in held:
            self._emit_arguments(self._arguments.add(held))
        self._buffer = ""
        return self._take_events()

    # The states. Each handles what the cursor points at and returns whether to go on.

    def _reasoning(self) -> bool:
        return self._text()

    def _content(self) -> bool:
        return self._text()

    def _text(self) -> bool:
        border, terminal = self._terminals.scan(self._buffer, self._cursor)
        self._emit_text(self._buffer[self._cursor : border])
        self._cursor = border
        if terminal is None:
            return False
        if terminal == THINK_END:
            # In content it is noise; in reasoning it is the end.
            self._cursor += len(terminal)
            self._state = self._content
            return True
        self._keep(border + len(terminal))
        self._block_is_empty = True
        self._gap_has_text = self._last_call_failed = False
        self._state = self._name if terminal.endswith(INVOKE_OPEN) else self._between_calls
        return True

    def _between_calls(self) -> bool:
        border, terminal = _BETWEEN_CALLS.scan(self._buffer, self._cursor)
        self._gap_has_text |= bool(self._keep(border).strip())
        if terminal is None:
            return False
        if terminal == INVOKE_OPEN:
            if self._gap_has_text:
                self._report("text between calls")
                self._gap_has_text = False
            self._keep(border + len(terminal))
            self._state = self._name
            return True
        self._keep(border + len(terminal))
        if self._block_is_empty:
            self._report("a block without a tool call")
        elif self._gap_has_text:
            self._report("text between calls")
        elif self._last_call_failed:
            self._release_raw()
        self._end_block()
        return True

    def _name(self) -> bool:
        self._block_is_empty = False
        match = _NAME.match(self._buffer, self._cursor)
        end = match.end() if match else self._cursor
        closer = self._buffer[end : end + 2]
        if end - self._cursor > LONGEST_NAME:
            return self._fail("a function name without an end")
        if closer in ("", '"'):
            return False
        name = self._buffer[self._cursor : end]
        if closer != '">' or not name:
            return self._fail("malformed function name")
        self._keep(end + 2)
        index = self._started_calls
        self._started_calls += 1
        self._arguments = ArgumentsWriter(self._properties.get(name))
        self._events.append(ToolCallStart(index, self._make_id(index), name))
        self._emit_arguments(ArgumentsWriter.OPEN)
        self._state = self._inside_call
        return True

    def _inside_call(self) -> bool:
        space = _WHITESPACE.match(self._buffer, self._cursor)
        self._keep(space.end() if space else self._cursor)
        for terminal in _INSIDE_CALL:
            if self._buffer.startswith(terminal, self._cursor):
                self._keep(self._cursor + len(terminal))
                if terminal == PARAMETER_OPEN:
                    self._state = self._parameter_head
                    return True
                self._complete_call()
                self._state = self._between_calls
                if terminal == CALLS_CLOSE:
                    self._end_block()
                return True
        rest = self._buffer[self._cursor : self._cursor + len(PARAMETER_OPEN)]
        if any(terminal.startswith(rest) for terminal in _INSIDE_CALL):
            return False
        return self._fail("neither a parameter nor the end of the call")

    def _parameter_head(self) -> bool:
        match = _PARAMETER_HEAD_END.search(self._buffer, self._cursor)
        if match is None:
            if len(self._buffer) - self._cursor > LONGEST_NAME:
                return self._fail("a parameter name without an end")
            return False
        head = self._buffer[self._cursor : match.end()]
        if not head.endswith((_STRING_TRUE, _STRING_FALSE)):
            return self._fail("parameter without a string attribute")
        is_string = head.endswith(_STRING_TRUE)
        key = head[: -len(_STRING_TRUE if is_string else _STRING_FALSE)]
        if self._arguments.has(key):
            return self._fail(f"duplicate parameter {key!r}")
        self._keep(match.end())
        self._emit_arguments(self._arguments.begin(key, is_string))
        self._state = self._parameter_value
        return True

    def _parameter_value(self) -> bool:
        border, terminal = _VALUE.scan(self._buffer, self._cursor)
        self._emit_arguments(self._arguments.add(self._keep(border)))
        if terminal is None:
            return False
        self._keep(border + len(terminal))
        self._emit_arguments(self._arguments.end())
        self._state = self._inside_call
        return True

    def _broken_call(self) -> bool:
        border, terminal = _BROKEN_CALL.scan(self._buffer, self._cursor)
        self._keep(border)
        if terminal is None:
            return False
        if terminal == INVOKE_OPEN:
            self._report(self._failure_reason)
            self._keep(border + len(terminal))
            self._state = self._name
            return True
        self._keep(border + len(terminal))
        self._report(self._failure_reason)
        self._state = self._between_calls
        if terminal == CALLS_CLOSE:
            self._end_block()
        return True

    def _after_calls(self) -> bool:
        self._keep(len(self._buffer))
        return False

    # What the states share.

    def _keep(self, end: int) -> str:
        """Moves the cursor to ``end``; the text up to it counts as markup until it is settled."""
        text = self._buffer[self._cursor : end]
        if text and not self._raw:
            self._raw_start = self._consumed + self._cursor
        if text:
            self._raw.append(text)
        self._cursor = end
        return text

    def _fail(self, reason: str) -> bool:
        self._failure_reason = reason
        self._state = self._broken_call
        return True

    def _report(self, reason: str) -> None:
        self._events.append(ParseFailure(reason, self._raw_start, "".join(self._raw)))
        self._release_raw()
        self._last_call_failed = True

    def _release_raw(self) -> None:
        if self._raw:
            self._events.append(ContentDelta("".join(self._raw)))
        self._raw = []

    def _complete_call(self) -> None:
        self._emit_arguments(ArgumentsWriter.CLOSE)
        self._events.append(ToolCallEnd(self._started_calls - 1))
        self.complete_calls += 1
        self._raw = []
        self._last_call_failed = False

    def _end_block(self) -> None:
        # A block without any good call has become content, and content may go on.
        self._raw = []
        self._state = self._after_calls if self.complete_calls else self._content

    def _emit_text(self, text: str) -> None:
        if text:
            delta = ReasoningDelta if self._state == self._reasoning else ContentDelta
            self._events.append(delta(text))

    def _emit_arguments(self, text: str) -> None:
        if text:
            self._events.append(ToolArguments(self._started_calls - 1, text))

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events


def _properties_by_name(schemas: Sequence[Mapping[str, Any]]) -> dict[str, frozenset[str]]:
    """Returns function name -> parameter names, for the schemas that list their parameters."""
    properties: dict[str, frozenset[str]] = {}
    for schema in schemas:
        parameters = schema.get("parameters")
        listed = parameters.get("properties") if isinstance(parameters, Mapping) else None
        if isinstance(listed, Mapping):
            properties[str(schema.get("name"))] = frozenset(listed)
    return properties

"""Generated text to reasoning, content and tool calls: one state machine for all three.

It works on text, never on token ids, and what it reports is a function of the text alone: how the
text was cut into chunks changes where deltas are cut, and nothing else.

Strict: a call counts only when the model wrote all of it. What breaks the format is reported and
handed on as content, so that no text is lost and no half-written call can be executed. Lenient
reading takes more spellings for a call, and completes none either. A call
streams while it is written; until it is complete its arguments are not a JSON document, because
their opening brace is sent first and their closing brace last.
"""

import re
import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from api.chat.arguments import ArgumentsWriter, properties_by_name, takes_text
from api.chat.events import (
    ContentDelta,
    Event,
    ParseFailure,
    ReasoningDelta,
    ToolArguments,
    ToolCallEnd,
    ToolCallStart,
)
from api.chat.json_text import parse_json, to_json
from api.chat.markers import DSML, THINK_END
from api.chat.scanner import Scanner
from api.chat.tags import LENIENT, STRICT, TEXT_ALONE, VALUES, Tags

Ending = Literal["stop", "length", "abort", "error"]

_WHITESPACE = re.compile(r"\s*")
_NAME = re.compile(r'[^"<\n]*')
_PARAMETER_HEAD_END = re.compile(f'">|</?{DSML}')
_STRING_TRUE = '" string="true">'
_STRING_FALSE = '" string="false">'
_LENIENT_HEAD = re.compile(r'([^"]*)">')

LONGEST_TAG = max(len(tag) for tag in LENIENT.inside_call)
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
    ``lenient``: tags without the DSML marker count, too; so do arguments as one JSON object, and
    parameters without their ``string`` attribute or with one that contradicts the schema, which
    then decides.
    """

    def __init__(
        self,
        in_reasoning: bool,
        tools: bool,
        tool_schemas: Sequence[Mapping[str, Any]] | None = None,
        make_id: Callable[[int], str] = make_call_id,
        lenient: bool = False,
    ) -> None:
        self.complete_calls = 0
        """Calls that were reported with ToolCallEnd."""
        self.incomplete_reasoning = False
        """The output ended by itself, but its reasoning did not."""
        self._properties = properties_by_name(tool_schemas or ())
        self._lenient = lenient
        self._tags: Tags = LENIENT if lenient else STRICT
        self._make_id = make_id
        self._tools = tools
        self._state: Callable[[], bool] = self._reasoning if in_reasoning else self._content
        self._ending: Ending | None = None
        self._events: list[Event] = []
        self._buffer = ""
        self._cursor = 0
        self._consumed = 0  # characters of the output before the buffer
        self._started_calls = 0
        self._arguments = ArgumentsWriter(None)
        self._types: Mapping[str, Any] = {}
        self._value = VALUES[STRICT.parameter_open[0]]
        self._json_text: list[str] = []
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

    def at_once(self, text: str) -> type[ReasoningDelta] | type[ContentDelta] | None:
        """Takes plain text that nothing before or after it can change; returns what it is.

        Feeding it would report just that event. None: it has to be fed, and was not taken.
        """
        thinks = self._state == self._reasoning
        is_text = thinks or self._state == self._content
        if not is_text or self._buffer or not self._text_ends(thinks).passes(text):
            return None
        self._consumed += len(text)
        return ReasoningDelta if thinks else ContentDelta

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
        terminals = self._text_ends(self._state == self._reasoning)
        border, terminal = terminals.scan(self._buffer, self._cursor)
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
        opens_call = terminal.endswith(self._tags.invoke_open)
        self._state = self._name if opens_call else self._between_calls
        return True

    def _between_calls(self) -> bool:
        border, terminal = self._tags.between_calls.scan(self._buffer, self._cursor)
        self._gap_has_text |= bool(self._keep(border).strip())
        if terminal is None:
            return False
        if terminal in self._tags.invoke_open:
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
        self._types = self._properties.get(name) or {}
        self._arguments = ArgumentsWriter(self._properties.get(name))
        self._events.append(ToolCallStart(index, self._make_id(index), name))
        self._emit_arguments(ArgumentsWriter.OPEN)
        self._state = self._inside_call
        return True

    def _inside_call(self) -> bool:
        space = _WHITESPACE.match(self._buffer, self._cursor)
        self._keep(space.end() if space else self._cursor)
        for terminal in self._tags.inside_call:
            if self._buffer.startswith(terminal, self._cursor):
                self._keep(self._cursor + len(terminal))
                if terminal in self._tags.parameter_open:
                    self._value = VALUES[terminal]
                    self._state = self._parameter_head
                    return True
                self._complete_call()
                self._state = self._between_calls
                if terminal in self._tags.calls_close:
                    self._end_block()
                return True
        rest = self._buffer[self._cursor : self._cursor + LONGEST_TAG]
        if any(terminal.startswith(rest) for terminal in self._tags.inside_call):
            return False
        if self._lenient and rest.startswith("{") and not self._arguments.has_any:
            self._json_text.clear()
            self._state = self._json_body
            return True
        return self._fail("neither a parameter nor the end of the call")

    def _parameter_head(self) -> bool:
        match = _PARAMETER_HEAD_END.search(self._buffer, self._cursor)
        if match is None:
            if len(self._buffer) - self._cursor > LONGEST_NAME:
                return self._fail("a parameter name without an end")
            return False
        head = self._buffer[self._cursor : match.end()]
        is_string = head.endswith(_STRING_TRUE)
        if is_string or head.endswith(_STRING_FALSE):
            key = head[: -len(_STRING_TRUE if is_string else _STRING_FALSE)]
            if self._lenient and is_string:
                is_string = takes_text(self._types.get(key))
        elif self._lenient and (bare := _LENIENT_HEAD.fullmatch(head)) is not None:
            key = bare[1]
            is_string = takes_text(self._types.get(key))
        else:
            return self._fail("parameter without a string attribute")
        if self._arguments.has(key):
            return self._fail(f"duplicate parameter {key!r}")
        self._keep(match.end())
        self._emit_arguments(self._arguments.begin(key, is_string))
        self._state = self._parameter_value
        return True

    def _parameter_value(self) -> bool:
        border, terminal = self._value.scan(self._buffer, self._cursor)
        self._emit_arguments(self._arguments.add(self._keep(border)))
        if terminal is None:
            return False
        self._keep(border + len(terminal))
        self._emit_arguments(self._arguments.end())
        self._state = self._inside_call
        return True

    def _json_body(self) -> bool:
        border, terminal = self._tags.json_body.scan(self._buffer, self._cursor)
        self._json_text.append(self._keep(border))
        if terminal is None:
            return False
        value = parse_json("".join(self._json_text))
        if not isinstance(value, dict):
            return self._fail("neither a parameter nor a JSON object")
        self._emit_arguments(to_json(value)[1:-1])
        self._state = self._inside_call
        return True

    def _broken_call(self) -> bool:
        border, terminal = self._tags.broken_call.scan(self._buffer, self._cursor)
        self._keep(border)
        if terminal is None:
            return False
        if terminal in self._tags.invoke_open:
            self._report(self._failure_reason)
            self._keep(border + len(terminal))
            self._state = self._name
            return True
        self._keep(border + len(terminal))
        self._report(self._failure_reason)
        self._state = self._between_calls
        if terminal in self._tags.calls_close:
            self._end_block()
        return True

    def _after_calls(self) -> bool:
        self._keep(len(self._buffer))
        return False

    # What the states share.

    def _text_ends(self, thinks: bool) -> Scanner:
        if not self._tools:
            return TEXT_ALONE
        # A thought may well name a tag in plain letters.
        return STRICT.text if thinks else self._tags.text

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

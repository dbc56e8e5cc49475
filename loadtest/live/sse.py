"""Server-sent events from bytes that arrive in any pieces."""

from __future__ import annotations

import re

LARGEST_EVENT_BYTES = 16 << 20
"""A longer event is not one: something else is being sent."""

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventError(ValueError):
    """A stream that holds no events; the message says what it holds."""


class EventReader:
    """Takes a stream's bytes in, and hands the data of its events out.

    Source: WHATWG HTML, "Interpreting an event stream": lines end with CRLF, LF or CR, a line that
    begins with a colon is a comment, `data` lines of one event are joined by LF, and an event
    without data is none. Other fields than `data` are not used.
    """

    def __init__(self) -> None:
        self._begun = False
        self._after_cr = False
        self._held: list[bytes] = []
        """Pieces of a line whose end has not come."""
        self._data: list[bytes] = []
        """Lines of an event whose end has not come."""
        self._bytes = 0
        """In both."""

    def feed(self, piece: bytes) -> list[bytes]:
        """Returns the data of the events that `piece` completes.

        Raises EventError for an event of more than LARGEST_EVENT_BYTES.
        """
        if self._after_cr and piece:
            self._after_cr = False
            piece = piece.removeprefix(b"\n")
        if not piece:
            return []
        self._bytes += len(piece)
        if self._bytes > LARGEST_EVENT_BYTES:
            raise EventError(f"an event of more than {LARGEST_EVENT_BYTES} bytes")
        self._after_cr = piece.endswith(b"\r")
        first, *others = _LINE_END.split(piece)
        self._held.append(first)
        if not others:
            return []
        lines = [b"".join(self._held), *others[:-1]]
        self._held = [others[-1]]
        events = [event for line in lines if (event := self._line(line)) is not None]
        self._bytes = len(others[-1]) + sum(map(len, self._data))
        return events

    def _line(self, line: bytes) -> bytes | None:
        """Takes one line; returns the data of the event that it ends."""
        if not self._begun:
            self._begun = True
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line:
            data, self._data = self._data, []
            return b"\n".join(data) if data else None
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        return None

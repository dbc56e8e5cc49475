"""Server-sent events, whole and in any pieces."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.live import sse
from loadtest.live.sse import EventError, EventReader

STREAM = (
    b"\xef\xbb\xbfdata: first\n\n: a comment\r\n\r\nevent: x\rdata:two\rdata: lines\r\r"
    b"data\n\nid: 7\n\ndata:  indented\r\n\r\n\n\ndata: [DONE]\n\ndata: never ended\n"
)
EVENTS = [b"first", b"two\nlines", b" indented", b"[DONE]"]


def read(pieces: list[bytes]) -> list[bytes]:
    reader = EventReader()
    return [event for piece in pieces for event in reader.feed(piece)]


def test_the_events_of_a_stream() -> None:
    assert read([STREAM]) == [*EVENTS[:2], b"", *EVENTS[2:]]


@pytest.mark.parametrize("size", range(1, len(STREAM)))
def test_every_size_of_piece_gives_the_same(size: int) -> None:
    pieces = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    assert read(pieces) == read([STREAM])


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_every_split_gives_the_same(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[begin:end] for begin, end in pairwise(edges)]
    assert read(pieces) == read([STREAM])


ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])


@given(
    st.lists(st.tuples(st.binary(max_size=20).filter(lambda b: not set(b) & {10, 13}), ENDS, ENDS)),
    st.data(),
)
def test_whatever_ends_the_lines(
    events: list[tuple[bytes, bytes, bytes]], data: st.DataObject
) -> None:
    # CR before LF would be one end of line, so an event never ends with CR where LF follows.
    stream = b"".join(
        b"data: " + text + end + (end if (end, other) == (b"\r", b"\n") else other)
        for text, end, other in events
    )
    cut = data.draw(st.integers(0, len(stream)))
    assert read([stream[:cut], stream[cut:]]) == [text for text, _, _ in events]


def test_an_event_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "LARGEST_EVENT_BYTES", 100)
    reader = EventReader()
    assert reader.feed(b"data: " + b"x" * 80 + b"\n\n") == [b"x" * 80]
    assert reader.feed(b"data: " + b"x" * 80) == []
    with pytest.raises(EventError, match="more than 100 bytes"):
        reader.feed(b"x" * 20)

"""The tokens of running tool turns, for clients that lose reasoning and for prefixes that stay.

A client that sends a tool call back names it by an id that only this server could have given out.
By that id the turn is found again: the reasoning the client dropped, and the exact tokens of what
it kept. Kept apart by owner, bounded by bytes and time, never logged.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from api.chat.messages import ToolCall, Written, parse_arguments

OVERHEAD_BYTES = 1024
"""Of one turn beside its tokens and ids: objects, digests, entries of dictionaries."""
DIGEST_BYTES = 16


class StoredTurn(msgspec.Struct, frozen=True):
    """One tool turn as it was generated."""

    written: Written
    reasoning: bytes
    """Digest of the reasoning text; see :func:`digest_of_text`."""
    rest: bytes
    """Digest of content and calls; see :func:`digest_of_rest`."""
    reasoning_tokens: int


class StoreCounts(msgspec.Struct):
    """What the store holds, and what became of the messages that asked it."""

    turns: int = 0
    bytes: int = 0
    evicted_turns: int = 0
    """Dropped because the bound in bytes was reached; those that expired do not count."""
    spliced_messages: int = 0
    restored_messages: int = 0
    restored_tokens: int = 0
    missed_messages: int = 0
    """Tool turns that came without reasoning and could not be given it back."""


class _Entry(msgspec.Struct):
    owner: str
    call_ids: tuple[str, ...]
    reasoning_ids: array[int] | None
    rest_ids: array[int] | None
    turn: StoredTurn
    """Without its tokens: they stand above, four bytes each."""
    size_bytes: int
    expires_s: float


class ReasoningStore:
    """Turns by (owner, call id). Safe to use from several threads.

    limit_bytes: of everything held; the turn that was not asked for longest goes first. age_s: a
    turn nobody asks for is gone after that time. clock: seconds, monotonic.
    """

    def __init__(
        self, limit_bytes: int, age_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.counts = StoreCounts()
        self._limit_bytes, self._age_s, self._clock = limit_bytes, age_s, clock
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        """Least recently used first, and so soonest to expire."""
        self._by_call: dict[tuple[str, str], int] = {}
        self._number = 0
        self._lock = threading.Lock()

    def put(self, owner: str, call_ids: Sequence[str], turn: StoredTurn) -> None:
        """Keeps the turn under each of its call ids; one larger than the bound is not kept."""
        reasoning_ids, rest_ids = _packed(turn.written.reasoning), _packed(turn.written.rest)
        entry = _Entry(
            owner,
            tuple(call_ids),
            reasoning_ids,
            rest_ids,
            msgspec.structs.replace(turn, written=Written()),
            OVERHEAD_BYTES
            + sum(len(ids) * ids.itemsize for ids in (reasoning_ids, rest_ids) if ids is not None)
            + sum(4 * (len(owner) + len(call_id)) for call_id in call_ids),
            self._clock() + self._age_s,
        )
        if not call_ids or entry.size_bytes > self._limit_bytes:
            return
        with self._lock:
            for call_id in call_ids:
                if (number := self._by_call.get((owner, call_id))) is not None:
                    self._drop(number)
            self._number += 1
            self._entries[self._number] = entry
            self._by_call |= {(owner, call_id): self._number for call_id in call_ids}
            self.counts.turns += 1
            self.counts.bytes += entry.size_bytes
            self._drop_expired()
            while self.counts.bytes > self._limit_bytes:
                self._drop(next(iter(self._entries)))
                self.counts.evicted_turns += 1

    def get(self, owner: str, call_ids: Sequence[str]) -> StoredTurn | None:
        """Returns the turn that all these calls belong to, None if there is none or it expired.

        A turn that is found lives on for the whole time again.
        """
        with self._lock:
            self._drop_expired()
            numbers = {self._by_call.get((owner, call_id)) for call_id in call_ids}
            number = numbers.pop() if len(numbers) == 1 else None
            if number is None:
                return None
            entry = self._entries[number]
            entry.expires_s = self._clock() + self._age_s
            self._entries.move_to_end(number)
        written = Written(_unpacked(entry.reasoning_ids), _unpacked(entry.rest_ids))
        return msgspec.structs.replace(entry.turn, written=written)

    def count(self, *, spliced: int, restored: int, tokens: int, missed: int) -> None:
        """Adds what became of a conversation's messages to the counts."""
        with self._lock:
            self.counts.spliced_messages += spliced
            self.counts.restored_messages += restored
            self.counts.restored_tokens += tokens
            self.counts.missed_messages += missed

    def _drop_expired(self) -> None:
        now_s = self._clock()
        while self._entries:
            number, entry = next(iter(self._entries.items()))
            if entry.expires_s > now_s:
                return
            self._drop(number)

    def _drop(self, number: int) -> None:
        entry = self._entries.pop(number)
        for call_id in entry.call_ids:
            del self._by_call[entry.owner, call_id]
        self.counts.turns -= 1
        self.counts.bytes -= entry.size_bytes


def digest_of_text(text: str) -> bytes:
    """Returns the digest of a text; white space around it does not count."""
    return _digest(text.strip())


def digest_of_rest(content: str, calls: Sequence[ToolCall]) -> bytes:
    """Returns the digest of what a message says besides reasoning.

    Calls count by what they mean: the order of keys, spaces and the spelling of numbers do not.
    Raises ValueError for arguments that are not a JSON object, or are nested too deeply to be
    compared.
    """
    try:
        said = [(call.id, call.name, _plain(parse_arguments(call.arguments))) for call in calls]
        return _digest(json.dumps([content.strip(), said], sort_keys=True))
    except RecursionError as error:
        raise ValueError("the arguments are nested too deeply") from error


def _plain(value: Any) -> Any:
    """Whole floats as integers: clients in JavaScript have one type for both."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()


def _packed(token_ids: Sequence[int] | None) -> array[int] | None:
    return None if token_ids is None else array("I", token_ids)


def _unpacked(token_ids: array[int] | None) -> tuple[int, ...] | None:
    return None if token_ids is None else tuple(token_ids)

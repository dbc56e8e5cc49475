"""What becomes of a turn's pages once it is known why the turn ended.

tool_calls   the same prefix, reasoning included, comes back soon: awaited, for a bounded time and
             a bounded share of the pages; then stable. The oldest turn gives way first.
answer       from the flip point on every token changes with the next user message: dead
length, aborted, and everything before the flip point: stable
"""

from __future__ import annotations

from collections import deque
from typing import Literal, NamedTuple

from scheduler.pages import PagePool

Why = Literal["tool_calls", "answer", "length", "aborted"]
Name = tuple[str, int]
"""Request id and choice."""


class EndedTurn(NamedTuple):
    """A finished choice: the root of its page identities, and its full pages."""

    root_key: bytes
    keys: list[bytes]


class EndedTurns:
    """Finished choices that are not classified yet, and turns that wait for their tools."""

    def __init__(
        self,
        pool: PagePool,
        *,
        page_tokens: int,
        remembered: int,
        awaited_s: float,
        awaited_share: float,
    ) -> None:
        self.pool, self.page_tokens = pool, page_tokens
        self.remembered = remembered
        self.awaited_s = awaited_s
        self.awaited_limit_pages = int(awaited_share * pool.total_pages)
        self._ended: dict[Name, EndedTurn] = {}
        self._awaited: deque[tuple[float, int, list[bytes]]] = deque()
        """(until, serial, page identities) of turns that wait for tools, oldest first."""
        self._serial_of: dict[bytes, int] = {}
        """Page identity -> the last turn that awaits it."""
        self._ends: dict[bytes, int] = {}
        """Identity of a turn's last page -> the last turn that awaits it and ends there."""
        self._serial = 0

    def add(self, name: Name, root_key: bytes, keys: list[bytes]) -> None:
        """Remembers a finished choice until its turn's end is told; the oldest is forgotten."""
        self._ended.pop(name, None)
        self._ended[name] = EndedTurn(root_key, keys)
        while len(self._ended) > self.remembered:
            del self._ended[next(iter(self._ended))]

    def classify(
        self, name: Name, why: Why, flip_token: int | None, now_s: float
    ) -> EndedTurn | None:
        """Classifies the idle pages of a finished choice; returns it, None when it is unknown.

        `flip_token` is the first position that the next user message changes, None when it
        changes nothing.
        """
        turn = self._ended.pop(name, None)
        if turn is None:
            return None
        if why == "tool_calls":
            self._await(turn.keys, now_s)
        elif why == "answer" and flip_token is not None:
            self.pool.reclassify(turn.keys, "dead", first=flip_token // self.page_tokens)
        return turn

    def awaits(self, key: bytes) -> bool:
        """Whether a turn that waits for its tools ends with this page: what follows goes on with
        it. Pages before the last may be shared with turns that have nothing to do with it."""
        return key in self._ends

    def expire(self, now_s: float) -> None:
        """Ends the protection of turns whose time is over."""
        while self._awaited and self._awaited[0][0] <= now_s:
            self._give_up_oldest()

    def _await(self, keys: list[bytes], now_s: float) -> None:
        self._serial += 1
        for key in keys:
            self._serial_of[key] = self._serial
        if keys:
            self._ends[keys[-1]] = self._serial
        self.pool.reclassify(keys, "awaited")
        self._awaited.append((now_s + self.awaited_s, self._serial, keys))
        while self._awaited and (
            self.pool.idle_of("awaited") > self.awaited_limit_pages
            or len(self._awaited) > self.remembered
        ):
            self._give_up_oldest()

    def _give_up_oldest(self) -> None:
        _, serial, keys = self._awaited.popleft()
        if keys and self._ends.get(keys[-1]) == serial:
            del self._ends[keys[-1]]
        last = [key for key in keys if self._serial_of.get(key) == serial]
        for key in last:
            del self._serial_of[key]
        # Turns that share pages share the leading ones.
        self.pool.reclassify(keys, "stable", first=len(keys) - len(last), was="awaited")

"""How fast the backlog of prompt tokens is worked off: what refused requests are told from."""

from __future__ import annotations

import math

DRAIN_MEMORY_S = 5.0
"""Seconds of steps after which what they showed counts a third (1 / e)."""


class DrainRate:
    """Backlog tokens per second by which recent steps made the backlog less."""

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0

    @property
    def tokens_per_s(self) -> float:
        """0 before any backlog was seen."""
        return max(0.0, self._tokens / self._seconds) if self._seconds else 0.0

    def observe(self, before_tokens: int, after_tokens: int, seconds: float) -> None:
        """Takes one step in, from its plan to its commit; without backlog it says nothing."""
        if before_tokens and seconds > 0:
            kept = math.exp(-seconds / DRAIN_MEMORY_S)
            self._tokens = self._tokens * kept + before_tokens - after_tokens
            self._seconds = self._seconds * kept + seconds

"""Prompt tokens that still have to be computed, in all and by tenant."""

from __future__ import annotations

from scheduler.request import Sequence


class Backlog:
    """A sum over unfinished sequences, kept as they change."""

    def __init__(self) -> None:
        self.tokens = 0
        self.by_tenant: dict[str, int] = {}
        """None that has nothing."""

    def set(self, sequence: Sequence, tokens: int) -> None:
        """Says how many prompt tokens a sequence still has to compute; below 0 counts as 0."""
        change = max(0, tokens) - sequence.backlog_tokens
        if not change:
            return
        sequence.backlog_tokens += change
        self.tokens += change
        own = self.by_tenant.get(sequence.tenant, 0) + change
        if own:
            self.by_tenant[sequence.tenant] = own
        else:
            del self.by_tenant[sequence.tenant]

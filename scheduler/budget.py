"""What one step may cost: tokens computed, and bytes of index scores."""

from __future__ import annotations

from scheduler.config import SchedulerConfig
from scheduler.request import Sequence


class Budget:
    """What is left of a step: tokens, and bytes of index scores."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.forms = config.forms
        self.tokens = config.max_num_batched_tokens
        self.score_bytes = config.indexer_workspace_bytes
        self.rows = 0

    def fit(self, sequence: Sequence, wanted: int) -> int:
        """Returns how many of the wanted tokens fit; the first row of a step always gets one."""
        count = min(wanted, self.tokens)
        start = sequence.computed_tokens
        # Rows without scores always fit, also after a first row that took more than there was.
        while count and self._scores(start, count) > max(0, self.score_bytes):
            if count == 1:
                return 0 if self.rows else 1
            # Largest c with c * (start + c) * 4 bytes within the budget lies in [count / 2, count]
            # or below; halving finds a fitting one in few steps.
            count //= 2
        return count

    def spend(self, start: int, count: int) -> None:
        self.tokens -= count
        self.score_bytes -= self._scores(start, count)
        self.rows += 1

    def give_back(self, start: int, count: int) -> None:
        """The row will not run after all."""
        self.tokens += count
        self.score_bytes += self._scores(start, count)
        self.rows -= 1

    def _scores(self, start: int, count: int) -> int:
        scored = self.forms.form(start, count) in ("mqa", "masked_mha")
        return count * (start + count) * 4 if scored else 0

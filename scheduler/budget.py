"""What one step may cost: its time, the tokens computed, and bytes of index scores.

Time is the budget where answers stream and a predictor knows what a step takes: prefill gets the
largest chunk that keeps the predicted step inside the inter-token target. Tokens bound every step,
and are the whole budget without a predictor or a target. Index scores are a hard limit, the memory
that the engine has set aside for them.
"""

from __future__ import annotations

from math import isqrt
from typing import Any, Protocol

import msgspec

from scheduler.config import SchedulerConfig

SCORE_BYTES = 4
"""Of one index score."""


class StepSums(msgspec.Struct):
    """What a step's seconds depend on: counts of tokens and rows, summed over its rows.

    A token's context is the number of tokens it can attend to, itself included; its selected tokens
    are min(context, top_k).
    """

    decode_rows: int = 0
    decode_context_tokens: int = 0
    decode_selected_tokens: int = 0
    prefill_rows: int = 0
    prefill_tokens: int = 0
    prefill_context_tokens: int = 0
    """Sum over the new tokens of the context each sees."""
    prefill_selected_tokens: int = 0
    decode_scored_tokens: int = 0
    """Context of the decode rows whose indexer scores it; no part of a prediction."""

    def add_chunk(self, start: int, count: int, top_k: int) -> None:
        """Adds `count` new tokens from position `start`."""
        below = min(max(top_k - start, 0), count)
        self.prefill_rows += 1
        self.prefill_tokens += count
        self.prefill_context_tokens += count * start + count * (count + 1) // 2
        self.prefill_selected_tokens += (
            below * start + below * (below + 1) // 2 + (count - below) * top_k
        )


class Predictor(Protocol):
    """Seconds of a step by its sums, learned from the steps that ran: `cost_model.StepPredictor`.

    `sums` has the fields of StepSums.
    """

    def predict(self, sums: Any) -> float: ...

    def observe(self, sums: Any, seconds: float) -> None: ...

    def largest_chunk(self, sums: Any, start: int, limit: int, budget_seconds: float) -> int:
        """The most new tokens from `start`, at most `limit`, that a step with `sums` has time for;
        0 if not even one token fits."""
        ...


class Budget:
    """What is left of a step."""

    def __init__(self, config: SchedulerConfig, predictor: Predictor | None = None) -> None:
        self.config, self.predictor = config, predictor
        self.forms = config.forms
        self.unscored_tokens = config.forms.unscored_tokens
        self.tokens = config.max_num_batched_tokens
        self.score_bytes = config.indexer_workspace_bytes
        self.rows = 0
        self.sums = StepSums()

    def fit(self, start: int, wanted: int, *, spare_time_only: bool = False) -> int:
        """Returns how many of `wanted` new tokens from position `start` fit.

        The first row of a step always gets one token. While answers stream, the first prefill row
        gets at least `prefill_floor_tokens`, so that a long prompt goes on when there is never
        time for it; with `spare_time_only` it gets what is left inside the target, or nothing.
        """
        count = min(wanted, self.tokens)
        if count <= 0:
            return 0
        if self.sums.decode_rows or spare_time_only:
            target_s = self.config.inter_token_target_s
            if self.predictor is not None and target_s is not None:
                fitting = self.predictor.largest_chunk(self.sums, start, count, target_s)
                floor = 0
                if not self.rows:
                    floor = 1
                if not spare_time_only and not self.sums.prefill_rows:
                    floor = self.config.prefill_floor_tokens
                count = min(count, max(fitting, floor))
        return count if start + count <= self.unscored_tokens else self._fit_scores(start, count)

    def spend(self, start: int, count: int) -> None:
        """Takes a prefill row."""
        self.tokens -= count
        if start + count > self.unscored_tokens:
            self.score_bytes -= count * (start + count) * SCORE_BYTES
        self.rows += 1
        self.sums.add_chunk(start, count, self.forms.selected_tokens)

    def spend_decodes(
        self, rows: int, score_bytes: int, context_tokens: int, selected_tokens: int
    ) -> None:
        """Takes decode rows."""
        self.tokens -= rows
        self.score_bytes -= score_bytes
        self.rows += rows
        self.sums.decode_rows += rows
        self.sums.decode_context_tokens += context_tokens
        self.sums.decode_selected_tokens += selected_tokens
        self.sums.decode_scored_tokens += score_bytes // SCORE_BYTES

    def _fit_scores(self, start: int, count: int) -> int:
        """The most tokens up to `count` whose scores fit; rows without scores always do."""
        room = max(0, self.score_bytes)
        if count * (start + count) * SCORE_BYTES <= room:
            return count
        # The largest c with c * (start + c) scores, or the largest chunk that needs no scores.
        fitting = (isqrt(start * start + 4 * (room // SCORE_BYTES)) - start) // 2
        fitting = min(count, max(fitting, self.unscored_tokens - start))
        return fitting if fitting > 0 else int(not self.rows)

"""A predictor without learning: so many seconds per step and per new token."""

from __future__ import annotations

from scheduler.budget import StepSums


class LinearPredictor:
    def __init__(self, step_s: float = 0.0, token_s: float = 1.0) -> None:
        self.step_s, self.token_s = step_s, token_s
        self.observed: list[tuple[int, int, float]] = []
        """Decode rows, prefill tokens, seconds."""

    def predict(self, sums: StepSums) -> float:
        return self.step_s + self.token_s * (sums.decode_rows + sums.prefill_tokens)

    def observe(self, sums: StepSums, seconds: float) -> None:
        self.observed.append((sums.decode_rows, sums.prefill_tokens, seconds))

    def largest_chunk(self, sums: StepSums, start: int, limit: int, budget_seconds: float) -> int:
        spare_s = budget_seconds - self.predict(sums)
        return max(0, min(limit, int(spare_s / self.token_s + 1e-9)))

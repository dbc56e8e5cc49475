"""A step's seconds, from sums the scheduler keeps, calibrated by the steps it sees.

    predictor = StepPredictor(coefficients, top_k=2048)
    sums = StepSums.decode_row(9000, 2048) + StepSums.prefill_chunk(0, 512, 2048)
    predictor.predict(sums)             # seconds
    predictor.observe(sums, 0.021)      # after the step ran
    predictor.largest_chunk(decodes, start=512, limit=8192, budget_seconds=0.05)

The coefficients turn sums into work, in seconds; each phase (steps of decode rows only, steps that
contain prefill) then has its own `seconds = scale x work + intercept`, learned online
(`cost_model.calibration`). A phase without steps of its own follows the other one.
"""

from __future__ import annotations

from operator import add

import msgspec

from cost_model.calibration import Calibration, PhaseFit
from cost_model.errors import CostError

LARGEST_SUM = 2**63 - 1
LARGEST_S = 86_400.0
"""Bound of every time given: no step takes a day."""


class StepSums(msgspec.Struct, frozen=True):
    """What a step's seconds depend on: counts of tokens and rows, summed over its rows.

    A token's context is the number of tokens it can attend to, itself included; its selected
    tokens are min(context, top_k). Raises CostError for a negative sum.
    """

    decode_rows: int = 0
    decode_context_tokens: int = 0
    decode_selected_tokens: int = 0
    prefill_rows: int = 0
    prefill_tokens: int = 0
    """New tokens."""
    prefill_context_tokens: int = 0
    """Sum over the new tokens of the context each sees."""
    prefill_selected_tokens: int = 0

    def __post_init__(self) -> None:
        sums = msgspec.structs.astuple(self)
        if not (min(sums) >= 0 and sum(sums) <= LARGEST_SUM):
            for name, value in zip(self.__struct_fields__, sums, strict=True):
                _require_count(name, value)

    @classmethod
    def decode_row(cls, context_tokens: int, top_k: int) -> StepSums:
        """The sums of one decode row; `top_k` 0 means no indexer, every token is attended to."""
        _require_count("context_tokens", context_tokens)
        _require_count("top_k", top_k)
        selected = min(context_tokens, top_k) if top_k else context_tokens
        return cls(1, context_tokens, selected)

    @classmethod
    def prefill_chunk(cls, start: int, count: int, top_k: int) -> StepSums:
        """The sums of `count` new tokens from position `start`; none at all for a count of 0."""
        for name, value in (("start", start), ("count", count), ("top_k", top_k)):
            _require_count(name, value)
        if not count:
            return cls()
        return cls(0, 0, 0, 1, count, *_chunk_pairs(start, count, top_k))

    def __add__(self, other: StepSums) -> StepSums:
        return StepSums(*map(add, msgspec.structs.astuple(self), msgspec.structs.astuple(other)))


class StepCoefficients(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of a step by its sums, before calibration; raises CostError for a negative one."""

    decode_token_s: float
    """Per new token of a decode row, wherever it stands."""
    decode_context_token_s: float
    decode_selected_token_s: float
    prefill_token_s: float
    prefill_context_token_s: float
    prefill_selected_token_s: float
    row_s: float
    """Per row of either phase."""
    step_s: float

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if not 0 <= value <= LARGEST_S:
                raise CostError(f"{name} is {value!r}; allowed: 0 to {LARGEST_S:g} seconds")


class PredictorFit(msgspec.Struct, frozen=True):
    """How well steps are predicted, by phase."""

    decode: PhaseFit
    """Steps of decode rows only."""
    prefill: PhaseFit
    """Steps that contain prefill."""


class StepPredictor:
    """Predicts a step's seconds and learns from the steps that ran. No clock: time is an argument.

    `top_k` is the tokens an indexer selects, 0 without one. The state depends on the calls alone,
    so a recorded run replays to the same predictions.
    """

    __slots__ = ("_decode", "_decode_row_s", "_prefill", "coefficients", "top_k")

    def __init__(self, coefficients: StepCoefficients, top_k: int) -> None:
        _require_count("top_k", top_k)
        self.coefficients = coefficients
        self.top_k = top_k
        self._decode = Calibration(coefficients.step_s)
        self._prefill = Calibration(coefficients.step_s)
        self._decode_row_s = coefficients.decode_token_s + coefficients.row_s

    def predict(self, sums: StepSums) -> float:
        """Seconds of a step with these sums; 0 for one without rows.

        It never falls when a sum rises. A step with prefill takes no less than its decode rows
        alone, however differently the two phases are calibrated.
        """
        return self._seconds(sums, *self._work(sums))

    def observe(self, sums: StepSums, seconds: float) -> None:
        """Calibrates by a step that took `seconds`.

        Raises CostError for a time that is not positive and finite, or for sums without rows.
        """
        _require_seconds("seconds", seconds)
        decode_s, prefill_s = self._work(sums)
        predicted = self._seconds(sums, decode_s, prefill_s)
        if not predicted:
            raise CostError("sums are all 0; allowed: those of a step with rows")
        phase, other = self._decode, self._prefill
        if _has_prefill(sums):
            phase, other = other, phase
        phase.relative_errors.append(abs(predicted - seconds) / seconds)
        phase.observe(decode_s + prefill_s, seconds)
        if not other.steps:
            other.follow(phase.scale, phase.intercept_s)

    def largest_chunk(self, sums: StepSums, start: int, limit: int, budget_seconds: float) -> int:
        """The most new tokens from `start`, at most `limit`, that a step with `sums` has time for.

        `sums` are those of the rows planned already. 0 if not even one token fits the budget.
        """
        for name, value in (("start", start), ("limit", limit)):
            _require_count(name, value)
        _require_seconds("budget_seconds", budget_seconds)
        decode_s, _ = self._work(sums)
        if _has_decode(sums) and self._decode.predict(decode_s) > budget_seconds:
            return 0
        rows, tokens = sums.prefill_rows + 1, sums.prefill_tokens
        contexts, selections = sums.prefill_context_tokens, sums.prefill_selected_tokens
        fits, excess = 0, limit + 1
        while excess - fits > 1:
            count = (fits + excess) // 2
            context, selected = _chunk_pairs(start, count, self.top_k)
            work_s = decode_s + self._prefill_work(
                rows, tokens + count, contexts + context, selections + selected
            )
            if self._prefill.predict(work_s) <= budget_seconds:
                fits = count
            else:
                excess = count
        return fits

    @property
    def error(self) -> PredictorFit:
        """The predictor's own error, by phase, with what it has learned."""
        return PredictorFit(self._decode.fit(), self._prefill.fit())

    def _seconds(self, sums: StepSums, decode_s: float, prefill_s: float) -> float:
        alone_s = self._decode.predict(decode_s) if _has_decode(sums) else 0.0
        if not _has_prefill(sums):
            return alone_s
        return max(self._prefill.predict(decode_s + prefill_s), alone_s)

    def _work(self, sums: StepSums) -> tuple[float, float]:
        """Seconds by the coefficients, of the decode rows and of the prefill rows."""
        coefficients = self.coefficients
        decode_s = (
            sums.decode_rows * self._decode_row_s
            + sums.decode_context_tokens * coefficients.decode_context_token_s
            + sums.decode_selected_tokens * coefficients.decode_selected_token_s
        )
        prefill_s = self._prefill_work(
            sums.prefill_rows,
            sums.prefill_tokens,
            sums.prefill_context_tokens,
            sums.prefill_selected_tokens,
        )
        return decode_s, prefill_s

    def _prefill_work(self, rows: int, tokens: int, context: int, selected: int) -> float:
        coefficients = self.coefficients
        return (
            rows * coefficients.row_s
            + tokens * coefficients.prefill_token_s
            + context * coefficients.prefill_context_token_s
            + selected * coefficients.prefill_selected_token_s
        )


def _chunk_pairs(start: int, count: int, top_k: int) -> tuple[int, int]:
    """Pairs of new and visible token, and of new and selected token, of one chunk."""
    context = count * start + count * (count + 1) // 2
    if not top_k:
        return context, context
    below = min(max(top_k - start, 0), count)
    return context, below * start + below * (below + 1) // 2 + (count - below) * top_k


def _has_decode(sums: StepSums) -> bool:
    return bool(sums.decode_rows or sums.decode_context_tokens or sums.decode_selected_tokens)


def _has_prefill(sums: StepSums) -> bool:
    return bool(
        sums.prefill_rows
        or sums.prefill_tokens
        or sums.prefill_context_tokens
        or sums.prefill_selected_tokens
    )


def _require_count(name: str, value: int) -> None:
    if not 0 <= value <= LARGEST_SUM:
        raise CostError(f"{name} is {value!r}; allowed: 0 to {LARGEST_SUM}")


def _require_seconds(name: str, value: float) -> None:
    if not 0 < value <= LARGEST_S:
        raise CostError(f"{name} is {value!r}; allowed: above 0, at most {LARGEST_S:g}")

"""A step's seconds, from sums the scheduler keeps, calibrated by the steps it sees.

    predictor = StepPredictor(coefficients, top_k=2048)
    sums = StepSums.decode_row(9000, 2048) + StepSums.prefill_chunk(0, 512, 2048)
    predictor.predict(sums)             # seconds
    predictor.observe(sums, 0.021)      # after the step ran
    predictor.largest_chunk(decodes, start=512, limit=8192, budget_seconds=0.05)

The coefficients turn sums into work, in seconds; each phase (steps of decode rows only, steps that
contain prefill) then has its own `seconds = scale x work + intercept`, learned online:

* The pair follows a random walk and is tracked by a Kalman filter on relative residuals. Its memory
  is some `MEMORY_STEPS` steps in the directions that steps excite. A direction that they do not
  excite (steps of one size cannot tell scale from intercept) stays where it was, at first where
  the coefficients put it, while the prediction at that size becomes right.
* Residuals count up to `OUTLIER` deviations and no further, and one beyond them does not narrow the
  covariance (Masreliez and Martin, "Robust Bayesian estimation for the linear model and
  robustifying the Kalman filter", 1977). The deviation of the noise is tracked through the median
  of absolute residuals by steps of fixed ratio, so no single step moves it much either.
* `SETTLING_STEPS` outliers in a row on one side are no outliers but another machine: the level
  becomes the median ratio of those steps, and the covariance opens again. A phase starts the
  same way; until then the coefficients' own level counts as one more step in a low median, so a
  slow first step, a compilation say, is not believed.
* A phase without steps of its own follows the other one.
"""

from __future__ import annotations

from collections import deque
from math import sqrt
from operator import add
from statistics import median, median_low

import msgspec

from cost_model.errors import CostError

LARGEST_SUM = 2**63 - 1
LARGEST_S = 86_400.0
"""Bound of every time given: no step takes a day."""
SMALLEST_S = 1e-9
"""Intercepts stay above this, so that no prediction is zero."""

SETTLING_STEPS = 8
MEMORY_STEPS = 32.0
OUTLIER = 2.5
"""Deviations beyond which a residual is an outlier."""
LARGEST_DEVIATION = 0.2
"""One step moves the prediction at its own size by at most OUTLIER times this share."""
SHARE_DRIFT = 0.3
"""Drift of the intercept's share of a step, relative to the drift of the whole."""
FIRST_NOISE, SMALLEST_NOISE, LARGEST_NOISE = 0.1, 0.01, 0.5
"""Relative deviation of a step's seconds."""
NOISE_RATE = 0.05
MEDIAN_DEVIATIONS = 0.6745
"""The median of absolute normal residuals, in deviations."""
RECENT_STEPS = 64
"""Steps that the reported error is the median of."""


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


class PhaseFit(msgspec.Struct, frozen=True):
    """How well one phase is predicted, for metrics."""

    steps: int
    """Seen since the start."""
    median_relative_error: float | None
    """Of |predicted - observed| / observed over recent steps, each predicted before it was learned
    from; None without steps."""
    scale: float
    """Seconds per second of work by the coefficients."""
    intercept_s: float


class PredictorFit(msgspec.Struct, frozen=True):
    """How well steps are predicted, by phase."""

    decode: PhaseFit
    """Steps of decode rows only."""
    prefill: PhaseFit
    """Steps that contain prefill."""


class Calibration:
    """`seconds = scale x work + intercept` of one phase, tracked robustly; see the module."""

    def __init__(self, intercept_s: float) -> None:
        self.steps = 0
        self.relative_errors: deque[float] = deque(maxlen=RECENT_STEPS)
        self.recent: deque[tuple[float, float]] = deque(maxlen=SETTLING_STEPS)
        self.noise = FIRST_NOISE
        self.outliers_in_a_row = 0
        self.scale_unit = self.intercept_unit = 0.0
        self.scale_variance = self.covariance = self.intercept_variance = 0.0
        self.follow(1.0, intercept_s)

    def follow(self, scale: float, intercept_s: float) -> None:
        """Starts from a scale and an intercept found elsewhere."""
        self.scale, self.intercept_s = scale, max(intercept_s, SMALLEST_S)
        self.start = (self.scale, self.intercept_s)

    def predict(self, work_s: float) -> float:
        return self.scale * work_s + self.intercept_s

    def observe(self, work_s: float, seconds: float) -> None:
        """Learns from one step."""
        self.steps += 1
        self.recent.append((work_s, seconds))
        if self.steps > SETTLING_STEPS:
            self._learn(work_s, seconds)
            if abs(self.outliers_in_a_row) == SETTLING_STEPS:
                self._settle()
            return
        scale, intercept_s = self.start
        level = median_low([1.0, *(s / (scale * work + intercept_s) for work, s in self.recent)])
        self.scale, self.intercept_s = level * scale, max(level * intercept_s, SMALLEST_S)
        if self.steps == SETTLING_STEPS:
            self._settle()

    def fit(self) -> PhaseFit:
        error = median(self.relative_errors) if self.relative_errors else None
        return PhaseFit(self.steps, error, self.scale, self.intercept_s)

    def _settle(self) -> None:
        """Takes level and covariance from the recent steps alone."""
        recent = list(self.recent)
        level = median([seconds / self.predict(work_s) for work_s, seconds in recent])
        self.scale *= level
        self.intercept_s = max(level * self.intercept_s, SMALLEST_S)
        work_s, seconds = median([w for w, _ in recent]), median([s for _, s in recent])
        self.intercept_unit = seconds
        self.scale_unit = seconds / work_s if work_s > SMALLEST_S else self.scale
        self.scale_variance = self.scale_unit**2
        self.intercept_variance = self.intercept_unit**2
        self.covariance = 0.0
        for work_s, seconds in recent:
            self._learn(work_s, seconds)
        self.outliers_in_a_row = 0

    def _learn(self, work_s: float, seconds: float) -> None:
        """One step of the filter, on (seconds - predicted) / predicted."""
        scale, intercept_s = self.scale, self.intercept_s
        predicted = scale * work_s + intercept_s
        residual = seconds / predicted - 1.0
        by_scale, by_intercept = work_s / predicted, 1.0 / predicted

        walk = (self.noise / MEMORY_STEPS) ** 2
        # The share drifts against this step's size: units from small steps would flood large ones.
        scale_unit = min(self.scale_unit, predicted / max(work_s, SMALLEST_S)) * SHARE_DRIFT
        intercept_unit = min(self.intercept_unit, predicted) * SHARE_DRIFT
        self.scale_variance += walk * (scale * scale + scale_unit * scale_unit)
        self.covariance += walk * scale * intercept_s
        self.intercept_variance += walk * (intercept_s**2 + intercept_unit * intercept_unit)
        noise_variance = self.noise * self.noise
        to_scale = self.scale_variance * by_scale + self.covariance * by_intercept
        to_intercept = self.covariance * by_scale + self.intercept_variance * by_intercept
        variance = max(by_scale * to_scale + by_intercept * to_intercept, 0.0) + noise_variance
        deviation = sqrt(variance)

        larger = abs(residual) > MEDIAN_DEVIATIONS * deviation
        rate = NOISE_RATE * noise_variance / variance  # less where the parameters are the doubt
        noise = self.noise * (1.0 + rate if larger else 1.0 - rate)
        self.noise = min(max(noise, SMALLEST_NOISE), LARGEST_NOISE)

        bound = OUTLIER * min(deviation, max(LARGEST_DEVIATION, self.noise))
        if abs(residual) > bound:
            side = 1 if residual > 0 else -1
            same = self.outliers_in_a_row * side > 0
            self.outliers_in_a_row = self.outliers_in_a_row + side if same else side
            residual = side * bound
        else:
            self.outliers_in_a_row = 0
        self.scale += to_scale * residual / variance
        self.intercept_s += to_intercept * residual / variance
        if not self.outliers_in_a_row:
            self.scale_variance -= to_scale * to_scale / variance
            self.covariance -= to_scale * to_intercept / variance
            self.intercept_variance -= to_intercept * to_intercept / variance
        self._clamp()

    def _clamp(self) -> None:
        """Moves a negative parameter to its bound, and the other to its mean given that."""
        if self.scale < 0.0:
            if self.scale_variance > 0.0:
                self.intercept_s -= self.covariance / self.scale_variance * self.scale
            self.scale = 0.0
        if self.intercept_s < SMALLEST_S:
            if self.intercept_variance > 0.0:
                moved = SMALLEST_S - self.intercept_s
                self.scale += self.covariance / self.intercept_variance * moved
            self.scale = max(self.scale, 0.0)
            self.intercept_s = SMALLEST_S


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

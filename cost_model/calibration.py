"""`seconds = scale x work + intercept`, learned from steps as they come, and hard to mislead.

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
"""

from __future__ import annotations

from collections import deque
from math import sqrt
from statistics import median, median_low

import msgspec

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

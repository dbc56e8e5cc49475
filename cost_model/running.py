"""GPU-seconds of spans of tokens in constant time: running sums over a window, made once."""

from __future__ import annotations

import numpy as np

from cost_model.costs import require_tokens
from cost_model.model import PHASES, CostModel, Phase, require_phase, total
from cost_model.work import FloatArray


class RunningSeconds:
    """The sums of `costs.span_seconds` over all components, for positions below `window_tokens`."""

    def __init__(self, model: CostModel, window_tokens: int) -> None:
        """Takes 16 bytes per position. Raises CostError for an absurd window."""
        require_tokens("window_tokens", window_tokens)
        self.window_tokens = window_tokens
        self._sums = {phase: _running_sum(model, phase, window_tokens) for phase in PHASES}

    def span(self, phase: Phase, start: int, end: int) -> float:
        """Returns the seconds of the tokens at positions start to end - 1.

        Positions beyond the window count nothing. Raises CostError for an unknown phase.
        """
        require_phase(phase)
        sums, last = self._sums[phase], self.window_tokens
        return float(sums[min(end, last)] - sums[min(start, last)])


def _running_sum(model: CostModel, phase: Phase, window_tokens: int) -> FloatArray:
    """Seconds of all tokens before each position, [window_tokens + 1]."""
    seconds = total(model.seconds(phase, np.arange(window_tokens)))
    return np.concatenate((np.zeros(1), np.cumsum(seconds)))

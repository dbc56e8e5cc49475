"""Questions asked backwards: where a price is reached, from where a model or a form is cheaper."""

from __future__ import annotations

import numpy as np

from cost_model.costs import LONGEST_TOKENS, usd_per_million
from cost_model.errors import CostError
from cost_model.model import CostModel, Phase, total
from cost_model.work import Form

WINDOW_TOKENS = 1 << 17
"""The positions of figure 3, and the default reach of every search."""


def position_at_cost(
    model: CostModel, phase: Phase, usd: float, price: float, reach: int = WINDOW_TOKENS
) -> int | None:
    """The first position below `reach` whose token costs at least `usd` per million, else None."""
    costs = usd_per_million(model, phase, _positions(reach), price)
    reached = np.flatnonzero(costs >= usd)
    return int(reached[0]) if reached.size else None


def break_even(
    model: CostModel, other: CostModel, phase: Phase, reach: int = WINDOW_TOKENS
) -> int | None:
    """The first position from which `model` is cheaper than `other` up to `reach`, else None."""
    positions = _positions(reach)
    cheaper = total(model.seconds(phase, positions)) < total(other.seconds(phase, positions))
    return _start_of_last_run(cheaper)


def form_break_even(
    model: CostModel,
    phase: Phase = "prefill",
    form: Form = "mqa",
    other: Form = "masked_mha",
    reach: int = WINDOW_TOKENS,
) -> int | None:
    """The first position from which attention in `form` is cheaper than in `other`, else None."""
    positions = _positions(reach)
    one = total(model.seconds(phase, positions, form))
    return _start_of_last_run(one < total(model.seconds(phase, positions, other)))


def knees(model: CostModel, phase: Phase, reach: int = WINDOW_TOKENS) -> list[int]:
    """Positions where the curve's slope changes: the switch of forms, and the end of selecting all.

    A knee belongs to the cheapest form on both sides of it, so top-k is no knee where another form
    is still used there.
    """
    found = set()
    forms = model.forms(phase)
    if len(forms) > 1:
        switch = form_break_even(model, phase, forms[1], forms[0], reach)
        if switch is not None and switch > 1:  # else one form is cheaper from the start
            found.add(switch)
    top_k = model.shape.index_topk
    if 0 < top_k < reach - 1:
        around = np.array([top_k - 1, top_k, top_k + 1], dtype=np.float64)
        left, middle, right = total(model.seconds(phase, around))
        if abs((right - middle) - (middle - left)) > 1e-6 * (middle - left):
            found.add(top_k)
    return sorted(found)


def _positions(reach: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    if not 1 <= reach <= LONGEST_TOKENS:
        raise CostError(f"reach is {reach}; allowed: 1 to {LONGEST_TOKENS} positions")
    return np.arange(reach)


def _start_of_last_run(holds: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> int | None:
    """Where the run of True that reaches the end begins."""
    broken = np.flatnonzero(~holds)
    start = int(broken[-1]) + 1 if broken.size else 0
    return start if start < holds.size else None

"""What every preset answers: the GPU-seconds of one token at a position, by component."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike

from cost_model.errors import CostError
from cost_model.shape import ModelShape
from cost_model.work import FloatArray, Form

Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = ("prefill", "decode")

Breakdown = dict[str, FloatArray]
"""Component -> GPU-seconds of one token, an array over the positions asked for."""


class CostModel(Protocol):
    """A preset: `Paper`, `Roofline` or `Measured`."""

    @property
    def preset(self) -> str:
        """ "paper", "roofline" or "measured"."""
        ...

    @property
    def shape(self) -> ModelShape:
        """The model it is about."""
        ...

    @property
    def step_seconds(self) -> float:
        """Seconds that any step takes beside its tokens; 0 where they are in the tokens' own."""
        ...

    @property
    def step_share_seconds(self) -> float:
        """The part of `step_seconds` that one decoded token of a full batch bears."""
        ...

    def forms(self, phase: Phase) -> tuple[Form, ...]:
        """The attention forms among which `seconds` takes the cheapest."""
        ...

    def seconds(self, phase: Phase, positions: ArrayLike, form: Form | None = None) -> Breakdown:
        """GPU-seconds of one token by component; `form` None: the cheapest that is exact.

        Raises CostError for a negative position or an unknown phase or form.
        """
        ...


def require_phase(phase: str) -> None:
    """Raises CostError unless `phase` is one."""
    if phase not in PHASES:
        raise CostError(f"phase is {phase!r}; allowed: {', '.join(PHASES)}")


def total(breakdown: Breakdown) -> FloatArray:
    """Seconds of all components together."""
    return np.sum(list(breakdown.values()), axis=0)


def forms_of(shape: ModelShape, phase: Phase) -> tuple[Form, ...]:
    """The attention forms that compute `phase` exactly: with an indexer, those that select."""
    if phase == "decode":
        return ("mqa",) if shape.sparse else ("dense_mqa",)
    return ("masked_mha", "mqa") if shape.sparse else ("mha",)


def cheapest(candidates: list[Breakdown]) -> Breakdown:
    """At each position the candidate with the smallest total; all have the same components."""
    best = np.argmin([total(one) for one in candidates], axis=0)
    return {name: np.choose(best, [one[name] for one in candidates]) for name in candidates[0]}

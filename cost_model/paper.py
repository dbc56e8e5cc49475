"""Preset `paper`: the constants recovered from figure 3 of the DeepSeek-V3.2 report.

The figure is a formula: straight lines whose slopes, with 61 layers and 2 USD per GPU-hour, are
counted FLOPs over round shares of an H800's peak. So this reproduces it by arithmetic; whether a
machine reaches those shares is another question, which the preset does not answer.

    seconds = fixed + core attention FLOPs / (share * 989.5 T) + indexer FLOPs / (share * 1979 T)

The four fixed times (projections, experts and whatever else does not grow with the position) are
read off at position 0. Of the seven shares six are round; the seventh, sparse prefill at
0.57337, is 0.60 with 2.72 us of further work per token, which the figure can not tell apart.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from cost_model.errors import CostError
from cost_model.machines import MACHINES
from cost_model.model import Breakdown, Phase, cheapest, forms_of, require_phase
from cost_model.shape import V31, V32, ModelShape
from cost_model.work import Form, as_positions, attention_flops

PEAK = MACHINES["h800"]

FIXED_SECONDS: dict[tuple[str, Phase], float] = {
    ("v3.1", "prefill"): 95.171e-6,
    ("v3.2", "prefill"): 110.004e-6,
    ("v3.1", "decode"): 126.895e-6,
    ("v3.2", "decode"): 171.343e-6,
}
"""GPU-seconds of one token at position 0."""
CORE_SHARE: dict[tuple[Phase, Form], float] = {
    ("prefill", "mha"): 0.60,
    ("prefill", "masked_mha"): 0.55,
    ("prefill", "mqa"): 0.57337,
    ("decode", "dense_mqa"): 0.60,
    ("decode", "mqa"): 0.40,
}
"""Share of the bfloat16 peak that core attention reaches."""
INDEX_SHARE: dict[Phase, float] = {"prefill": 0.40, "decode": 0.35}
"""Share of the FP8 peak that the indexer reaches."""


class Paper(msgspec.Struct, frozen=True):
    """The report's H800 cluster. Only the two models of the figure have constants."""

    shape: ModelShape = V32

    def __post_init__(self) -> None:
        if msgspec.structs.replace(self.shape, name=self._figures.name) != self._figures:
            raise CostError(
                f"model is {self.shape.name!r}; preset paper allows: {V31.name}, {V32.name} "
                "(the figure's); use roofline or measured for others"
            )

    @property
    def _figures(self) -> ModelShape:
        """The model of the figure that this one must be, under whatever name."""
        return V32 if self.shape.sparse else V31

    @property
    def preset(self) -> str:
        return "paper"

    @property
    def step_seconds(self) -> float:
        return 0.0

    @property
    def step_share_seconds(self) -> float:
        return 0.0

    def forms(self, phase: Phase) -> tuple[Form, ...]:
        return forms_of(self.shape, phase)

    def seconds(self, phase: Phase, positions: ArrayLike, form: Form | None = None) -> Breakdown:
        """GPU-seconds of one token: `fixed`, `core_attention` and, for V3.2, `indexer`."""
        require_phase(phase)
        values = as_positions(positions)
        forms = self.forms(phase) if form is None else (form,)
        return cheapest([self._seconds_in(phase, values, one) for one in forms])

    def _seconds_in(self, phase: Phase, positions: ArrayLike, form: Form) -> Breakdown:
        if (phase, form) not in CORE_SHARE:
            known = [one for known_phase, one in CORE_SHARE if known_phase == phase]
            raise CostError(f"form is {form!r}; the paper's {phase} has: {', '.join(known)}")
        flops = attention_flops(self.shape, form, positions)
        core = flops["core_attention"] / (CORE_SHARE[phase, form] * PEAK.bf16_flops)
        fixed = np.full_like(core, FIXED_SECONDS[self._figures.name, phase])
        parts = {"fixed": fixed, "core_attention": core}
        if self.shape.sparse and form in ("masked_mha", "mqa"):
            rate = INDEX_SHARE[phase] * PEAK.fp8_flops
            parts["indexer"] = flops["indexer"] / rate
        return parts

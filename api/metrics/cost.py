"""What a step's tokens should have cost, and what they were in FLOPs: the cost model, in sums.

Prefill is priced position by position, from a running sum over the window; decode by the sums that
the engine sends, which is exact for models whose decoded tokens cost `a + b context + c selected`,
as those of presets paper and roofline do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from api.metrics.names import COST_POSITIONS
from cost_model.coefficients import step_coefficients
from cost_model.costs import dollars, require_price
from cost_model.machines import MACHINES, Machine
from cost_model.model import CostModel, Phase, total
from cost_model.paper import PEAK, Paper
from cost_model.roofline import Roofline, RooflineChoices
from cost_model.running import RunningSeconds
from cost_model.shape import V31, V32, ModelShape
from cost_model.work import (
    Form,
    causal_pairs,
    index_pair_flops,
    linear_flops,
    pair_flops,
    selected_pairs,
)
from engine.messages import StepStats

SELECTING = ("masked_mha", "mqa")


class StepFlops(NamedTuple):
    """Counted FLOPs of a step."""

    linear: float
    core: float
    indexer: float


class RequestCost(msgspec.Struct, frozen=True):
    """Extension of `usage`: what the tokens cost by the cost model, each where it stands."""

    usd: float
    prefill_usd: float
    """Of the prompt tokens that were computed."""
    decode_usd: float
    gpu_seconds: float
    usd_per_gpu_hour: float


class Costs:
    """One model on one kind of machine at one price."""

    def __init__(self, model: CostModel, machine: str, usd_per_hour: float, window: int) -> None:
        """window: longest sequence in tokens. Raises CostError for an absurd price."""
        self.model, self.machine = model, machine
        self.usd_per_hour = require_price(usd_per_hour)
        self._seconds = RunningSeconds(model, window)
        self.curve = self._curve(window)
        """(phase, position) -> USD per million tokens, inside the window."""
        self._coefficients = step_coefficients(model)
        shape = model.shape
        linear = linear_flops(shape)
        self._head_flops = linear.pop("head")
        self._token_flops = sum(linear.values())
        self._index_flops = index_pair_flops(shape) if shape.sparse else 0
        forms: tuple[Form, ...] = ("mha", "masked_mha", "mqa", "dense_mqa")
        self._pair_flops: dict[Form, int] = {form: pair_flops(shape, form) for form in forms}

    @classmethod
    def of(cls, shape: ModelShape, machine: str, usd_per_hour: float | None, window: int) -> Costs:
        """Returns the costs of a model: by the report's formula where it has one, else counted work
        over the machine's rates. usd_per_hour: None takes the machine's own price."""
        sheet = MACHINES[machine]
        price = sheet.usd_per_hour if usd_per_hour is None else usd_per_hour
        return cls(_cost_model(shape, sheet), sheet.name, price, window)

    def expected_seconds(self, step: StepStats) -> tuple[float, float]:
        """Returns the GPU-seconds of a step's (prefill, decode) tokens, what a step takes anyway
        left out."""
        prefill_s = sum(
            self._seconds.span("prefill", start, start + count) for start, count, _ in step.prefills
        )
        cost = self._coefficients
        decode_s = (
            step.decode_rows * cost.decode_token_s
            + step.decode_context_tokens * cost.decode_context_token_s
            + step.decode_selected_tokens * cost.decode_selected_token_s
        )
        return prefill_s, decode_s

    def prefill_context(self, step: StepStats) -> tuple[int, int]:
        """Returns the sums over a step's prefilled tokens of what each sees and attends to."""
        shape = self.model.shape
        visible = selected = 0
        for start, count, _ in step.prefills:
            visible += causal_pairs(start, count)
            selected += selected_pairs(shape, start, count)
        return visible, selected

    def flops(self, step: StepStats) -> StepFlops:
        """Returns the FLOPs that a step's tokens must take, in the forms they were computed in."""
        shape = self.model.shape
        prefilled = sum(count for _, count, _ in step.prefills)
        sampled = step.first_tokens + sum(tokens for _, tokens in step.gaps)
        linear = (step.decode_rows + prefilled) * self._token_flops + sampled * self._head_flops
        core = step.decode_selected_tokens * self._pair_flops["mqa"]
        scored = step.decode_scored_tokens
        for start, count, form in step.prefills:
            pairs = causal_pairs(start, count)
            scored += pairs if form in SELECTING else 0
            if form == "mqa":
                pairs = selected_pairs(shape, start, count)
            core += pairs * self._pair_flops[form]
        return StepFlops(float(linear), float(core), float(scored * self._index_flops))

    def dollars(self, seconds: float) -> float:
        """Returns USD of GPU-seconds."""
        return dollars(seconds, self.usd_per_hour)

    def request(self, prompts: Iterable[tuple[int, int, list[int]]]) -> RequestCost:
        """Returns the cost of a request. prompts: (tokens, of these cached, tokens of each choice).

        A prompt is computed once however many choices it has.
        """
        prefill_s = decode_s = 0.0
        for prompt, cached, outputs in prompts:
            prefill_s += self._seconds.span("prefill", cached, prompt)
            for output in outputs:
                decode_s += self._seconds.span("decode", prompt, prompt + output)
        prefill_usd, decode_usd = self.dollars(prefill_s), self.dollars(decode_s)
        return RequestCost(
            usd=prefill_usd + decode_usd,
            prefill_usd=prefill_usd,
            decode_usd=decode_usd,
            gpu_seconds=prefill_s + decode_s,
            usd_per_gpu_hour=self.usd_per_hour,
        )

    def _curve(self, window: int) -> dict[tuple[str, ...], float]:
        positions = [position for position in COST_POSITIONS if position < window]
        phases: tuple[Phase, ...] = ("prefill", "decode")
        return {
            (phase, str(position)): self.dollars(float(seconds)) * 1e6
            for phase in phases
            for position, seconds in zip(
                positions, total(self.model.seconds(phase, positions)), strict=True
            )
        }


def _cost_model(shape: ModelShape, machine: Machine) -> CostModel:
    figures = V32 if shape.sparse else V31
    if machine == PEAK and msgspec.structs.replace(shape, name=figures.name) == figures:
        return Paper(shape)
    # One token a step: nothing is drafted.
    return Roofline(shape, machine, RooflineChoices(tokens_per_read=1.0))

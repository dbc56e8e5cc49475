"""Seconds and dollars of a token, a span, a request and a step: sums of one token's seconds."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from cost_model.errors import CostError
from cost_model.model import CostModel, Phase, require_phase, total
from cost_model.work import FloatArray

SECONDS_PER_HOUR = 3600.0
LARGEST_PRICE = 1e6
LONGEST_TOKENS = 1 << 20
"""Spans beyond this are taken for mistakes: eight times the model's window."""


class RequestCost(msgspec.Struct, frozen=True, kw_only=True):
    """GPU-seconds of one request by component, and what they cost."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    usd_per_hour: float
    prefill_seconds: dict[str, float]
    decode_seconds: dict[str, float]

    @property
    def seconds(self) -> float:
        """GPU-seconds, prefill and decode."""
        return sum(self.prefill_seconds.values()) + sum(self.decode_seconds.values())

    @property
    def prefill_usd(self) -> float:
        """Dollars of the prompt tokens that were computed."""
        return dollars(sum(self.prefill_seconds.values()), self.usd_per_hour)

    @property
    def decode_usd(self) -> float:
        """Dollars of the output tokens."""
        return dollars(sum(self.decode_seconds.values()), self.usd_per_hour)

    @property
    def usd(self) -> float:
        """Dollars of the request."""
        return dollars(self.seconds, self.usd_per_hour)


class StepRow(msgspec.Struct, frozen=True):
    """Part of a step: `count` new tokens after `start` tokens of context."""

    phase: Phase
    start: int
    count: int = 1


def dollars(seconds: float, price: float) -> float:
    """USD of GPU-seconds at `price` USD per GPU-hour; raises CostError for a negative price."""
    return seconds * require_price(price) / SECONDS_PER_HOUR


def require_price(price: float) -> float:
    """The price itself; raises CostError for a negative or absurd one."""
    if not 0 <= price <= LARGEST_PRICE:
        raise CostError(f"price is {price}; allowed: 0 to {LARGEST_PRICE:g} USD per GPU-hour")
    return price


def require_tokens(name: str, value: int) -> int:
    """The value itself; raises CostError for a negative or absurd number of tokens."""
    if not 0 <= value <= LONGEST_TOKENS:
        raise CostError(f"{name} is {value}; allowed: 0 to {LONGEST_TOKENS} tokens")
    return value


def usd_per_million(
    model: CostModel, phase: Phase, positions: ArrayLike, price: float
) -> FloatArray:
    """USD per million tokens that stand at each position."""
    seconds = total(model.seconds(phase, positions))
    return seconds * require_price(price) / SECONDS_PER_HOUR * 1e6


def span_seconds(model: CostModel, phase: Phase, start: int, end: int) -> dict[str, float]:
    """GPU-seconds by component of the tokens at positions start to end - 1."""
    require_tokens("start", start)
    require_tokens("end", end)
    if end < start:
        raise CostError(f"end is {end}; allowed: start = {start} and above")
    parts = model.seconds(phase, np.arange(start, end))
    return {name: float(values.sum()) for name, values in parts.items()}


def request_cost(
    model: CostModel, prompt: int, cached: int, output: int, price: float
) -> RequestCost:
    """The cost of `output` tokens after `prompt` tokens, of which `cached` need no computing.

    An output token is priced where it stands: the first at position `prompt`. Where steps take time
    of their own (`step_seconds`), component `step` holds one step for the prompt, if any of it is
    computed, and each output token's share of its step.
    """
    require_price(price)
    require_tokens("prompt", prompt)
    require_tokens("output", output)
    if not 0 <= cached <= prompt:
        raise CostError(f"cached is {cached}; allowed: 0 to prompt = {prompt} tokens")
    require_tokens("prompt + output", prompt + output)
    prefill = span_seconds(model, "prefill", cached, prompt)
    decode = span_seconds(model, "decode", prompt, prompt + output)
    if model.step_seconds:
        prefill["step"] = model.step_seconds if prompt > cached else 0.0
        decode["step"] = model.step_share_seconds * output
    return RequestCost(
        prompt_tokens=prompt,
        cached_tokens=cached,
        output_tokens=output,
        usd_per_hour=price,
        prefill_seconds=prefill,
        decode_seconds=decode,
    )


def step_seconds(model: CostModel, rows: Sequence[StepRow]) -> float:
    """Seconds of one step with these rows: all of their tokens, and what a step takes anyway."""
    seconds = model.step_seconds
    for row in rows:
        require_phase(row.phase)
        seconds += sum(span_seconds(model, row.phase, row.start, row.start + row.count).values())
    return seconds


def mean_usd_per_million(
    model: CostModel, phase: Phase, start: int, end: int, price: float
) -> float:
    """USD per million tokens, averaged over positions start to end - 1."""
    if end <= start:
        raise CostError(f"end is {end}; allowed: above start = {start}")
    seconds = sum(span_seconds(model, phase, start, end).values())
    return dollars(seconds, price) * 1e6 / (end - start)

"""From the figure's slopes back to the constants of preset `paper`.

A cost that grows by `s` USD per million tokens with each token of context, at 2 USD per GPU-hour,
is `s * 1800 microseconds` of GPU time; the FLOPs that a token of context adds (counted in
`cost_model.work`) over that time are a rate, and the rate is a share of the H800's peak.

V3.2's lines have two parts. Behind the knee the core attends to top-k tokens whatever the context,
so the slope is the indexer's alone; and what the line behind the knee would cost at position 0,
less what the curve does cost there, is core attention to top-k tokens.
"""

from __future__ import annotations

import msgspec

from cost_model.figure3 import PRICE, Curve, curves
from cost_model.paper import PEAK
from cost_model.shape import ModelShape
from cost_model.work import Form, index_pair_flops, pair_flops

SECONDS_OF_USD = 3600 / PRICE / 1e6
"""GPU-seconds of one token that costs 1 USD per million."""


class FixedTime(msgspec.Struct, frozen=True, kw_only=True):
    """The cost of a token at position 0."""

    curve: str
    usd_per_million_tokens: float
    seconds: float


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """What one slope says about one component."""

    curve: str
    component: str
    flops: int
    """Per token of context, all layers."""
    seconds: float
    """Per token of context."""
    peak_flops: float
    """FLOP/s of the H800 in the component's type."""
    exact: bool = True
    """False: an upper bound, because the drawn line leaves out the knee."""

    @property
    def share(self) -> float:
        """Of the peak."""
        return self.flops / self.seconds / self.peak_flops


def fixed_times() -> tuple[FixedTime, ...]:
    """Where the four lines start."""
    return tuple(
        FixedTime(
            curve=name,
            usd_per_million_tokens=curve.vertices[0][1],
            seconds=curve.vertices[0][1] * SECONDS_OF_USD,
        )
        for name, curve in curves().items()
    )


def shares() -> tuple[Share, ...]:
    """The shares of peak that the figure's slopes imply."""
    found: list[Share] = []
    for curve in curves().values():
        shape = curve.shape
        first, last = curve.vertices[0], curve.vertices[-1]
        if not shape.sparse:
            form: Form = "mha" if curve.phase == "prefill" else "dense_mqa"
            found.append(_core(curve, form, _slope(first, last)))
            continue
        knee = curve.vertices[1]
        behind = _slope(knee, last)
        found.append(
            Share(
                curve=curve.name,
                component="indexer",
                flops=index_pair_flops(shape),
                seconds=behind * SECONDS_OF_USD,
                peak_flops=PEAK.fp8_flops,
            )
        )
        at_start = last[1] - behind * last[0]
        found.append(_core(curve, "mqa", (at_start - first[1]) / shape.index_topk))
        if curve.phase == "prefill":
            before = _slope(first, knee)
            found.append(_core(curve, "masked_mha", before - behind, exact=False))
    return tuple(found)


def _core(curve: Curve, form: Form, usd: float, exact: bool = True) -> Share:
    shape: ModelShape = curve.shape
    return Share(
        curve=curve.name,
        component=f"core_attention.{form}",
        flops=pair_flops(shape, form),
        seconds=usd * SECONDS_OF_USD,
        peak_flops=PEAK.bf16_flops,
        exact=exact,
    )


def _slope(start: tuple[float, float], end: tuple[float, float]) -> float:
    return (end[1] - start[1]) / (end[0] - start[0])

"""What `winnow cost` answers: the structs that `--json` prints and the tables and plots show."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cost_model.costs import RequestCost, dollars, mean_usd_per_million, request_cost
from cost_model.costs import usd_per_million as costs_at
from cost_model.inverse import WINDOW_TOKENS, break_even, knees, position_at_cost
from cost_model.model import PHASES, Phase
from cost_model.presets import Chosen
from cost_model.trajectory import POLICIES, LoopCost, ToolLoop, loop_cost


class PhaseCost(msgspec.Struct, frozen=True, kw_only=True):
    """Prefill or decode of one request."""

    tokens: int
    gpu_seconds: float
    usd: float
    usd_per_million_tokens: float | None
    """None without tokens."""
    gpu_seconds_by_component: dict[str, float]
    usd_by_component: dict[str, float]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request."""

    preset: str
    model: str
    gpu: str
    usd_per_gpu_hour: float
    estimated: tuple[str, ...]
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    prefill: PhaseCost
    decode: PhaseCost
    gpu_seconds: float
    usd: float


def request(chosen: Chosen, prompt: int, cached: int, output: int) -> Request:
    """The cost of a request by phase and component."""
    cost = request_cost(chosen.model, prompt, cached, output, chosen.usd_per_hour)
    return Request(
        preset=chosen.model.preset,
        model=chosen.model.shape.name,
        gpu=chosen.machine,
        usd_per_gpu_hour=chosen.usd_per_hour,
        estimated=chosen.estimated,
        prompt_tokens=prompt,
        cached_tokens=cached,
        output_tokens=output,
        prefill=_phase_cost(prompt - cached, cost.prefill_seconds, chosen.usd_per_hour),
        decode=_phase_cost(output, cost.decode_seconds, chosen.usd_per_hour),
        gpu_seconds=cost.seconds,
        usd=cost.usd,
    )


def _phase_cost(tokens: int, seconds: dict[str, float], price: float) -> PhaseCost:
    whole = sum(seconds.values())
    usd = dollars(whole, price)
    return PhaseCost(
        tokens=tokens,
        gpu_seconds=whole,
        usd=usd,
        usd_per_million_tokens=usd / tokens * 1e6 if tokens else None,
        gpu_seconds_by_component=seconds,
        usd_by_component={name: dollars(one, price) for name, one in seconds.items()},
    )


class PolicyAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A tool loop under one rule for its reasoning."""

    steps: int
    complete: bool
    """False: the window was full before the last step."""
    computed_tokens: int
    cached_tokens: int
    output_tokens: int
    longest_context_tokens: int
    gpu_seconds: float
    usd: float
    usd_by_component: dict[str, float]
    """"prefill.indexer" and so on."""
    usd_of_steps: list[float]


class Trajectory(msgspec.Struct, frozen=True, kw_only=True):
    """A tool loop under each policy."""

    preset: str
    model: str
    gpu: str
    usd_per_gpu_hour: float
    estimated: tuple[str, ...]
    loop: ToolLoop
    policies: dict[str, PolicyAnswer]


def trajectory(chosen: Chosen, loop: ToolLoop) -> Trajectory:
    """The cost of `loop` under the three policies."""
    return Trajectory(
        preset=chosen.model.preset,
        model=chosen.model.shape.name,
        gpu=chosen.machine,
        usd_per_gpu_hour=chosen.usd_per_hour,
        estimated=chosen.estimated,
        loop=loop,
        policies={
            policy: _policy(loop_cost(chosen.model, loop, policy, chosen.usd_per_hour))
            for policy in POLICIES
        },
    )


def _policy(cost: LoopCost) -> PolicyAnswer:
    return PolicyAnswer(
        steps=len(cost.steps),
        complete=cost.complete,
        computed_tokens=cost.computed_tokens,
        cached_tokens=sum(step.cached_tokens for step in cost.steps),
        output_tokens=sum(step.output_tokens for step in cost.steps),
        longest_context_tokens=max(step.prompt_tokens + step.output_tokens for step in cost.steps),
        gpu_seconds=cost.seconds,
        usd=cost.usd,
        usd_by_component=_usd_by_component(cost.steps),
        usd_of_steps=[step.usd for step in cost.steps],
    )


def _usd_by_component(steps: Sequence[RequestCost]) -> dict[str, float]:
    found: dict[str, float] = {}
    for step in steps:
        for phase, seconds in (("prefill", step.prefill_seconds), ("decode", step.decode_seconds)):
            for name, one in seconds.items():
                key = f"{phase}.{name}"
                found[key] = found.get(key, 0.0) + dollars(one, step.usd_per_hour)
    return found


class PhaseComparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two models in one phase; pairs are in the order they were given."""

    usd_per_million_tokens: tuple[list[float], list[float]]
    ratio: list[float | None]
    """The first model's cost over the second's; None where that is 0."""
    mean_usd_per_million_tokens: tuple[float, float]
    """Over positions 0 to 131071."""
    mean_ratio: float | None
    cheaper: str | None
    """The model that is cheaper at the last position of the window; None: they cost the same."""
    cheaper_from_position: int | None
    knees: tuple[list[int], list[int]]
    reached_at_position: tuple[int | None, int | None] | None
    """The first position that costs what was asked; None: nothing was asked, or not reached."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two models on one machine."""

    preset: str
    models: tuple[str, str]
    gpu: str
    usd_per_gpu_hour: float
    positions: list[int]
    phases: dict[Phase, PhaseComparison]


def compare(
    one: Chosen, other: Chosen, positions: list[int], reached_usd: float | None = None
) -> Comparison:
    """Costs of two models beside each other; `reached_usd` asks where each costs that much."""
    return Comparison(
        preset=one.model.preset,
        models=(one.model.shape.name, other.model.shape.name),
        gpu=one.machine,
        usd_per_gpu_hour=one.usd_per_hour,
        positions=positions,
        phases={phase: _compare(one, other, phase, positions, reached_usd) for phase in PHASES},
    )


def _compare(
    one: Chosen, other: Chosen, phase: Phase, positions: list[int], reached_usd: float | None
) -> PhaseComparison:
    price, pair = one.usd_per_hour, (one.model, other.model)
    left, right = (costs_at(model, phase, positions, price).tolist() for model in pair)
    mean_left, mean_right = (
        mean_usd_per_million(model, phase, 0, WINDOW_TOKENS, price) for model in pair
    )
    cheaper, start = None, None
    for model, against in (pair, pair[::-1]):
        if (found := break_even(model, against, phase)) is not None:
            cheaper, start = model.shape.name, found
    reached = None
    if reached_usd is not None:
        at_left, at_right = (position_at_cost(model, phase, reached_usd, price) for model in pair)
        reached = (at_left, at_right)
    return PhaseComparison(
        usd_per_million_tokens=(left, right),
        ratio=[_ratio(a, b) for a, b in zip(left, right, strict=True)],
        mean_usd_per_million_tokens=(mean_left, mean_right),
        mean_ratio=_ratio(mean_left, mean_right),
        cheaper=cheaper,
        cheaper_from_position=start,
        knees=(knees(one.model, phase), knees(other.model, phase)),
        reached_at_position=reached,
    )


def _ratio(one: float, other: float) -> float | None:
    return one / other if other else None

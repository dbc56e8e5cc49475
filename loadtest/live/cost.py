"""What the tokens of a window cost, and what the cost model says they should, where they stood.

    measured   GPU-seconds x price. Of Winnow: the time of its steps, by phase, as it counts it. Of
               other servers: all of their GPUs for the whole window, which is what one pays
    expected   the cost model's dollars of the same computed tokens, each at its position. Winnow
               counts them itself; for other servers they are summed over the requests' usage

All dollars are made by cost_model.costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from cost_model.costs import dollars
from cost_model.model import PHASES
from cost_model.presets import Chosen
from cost_model.running import RunningSeconds
from loadtest.live.samples import Sample
from loadtest.live.scrape import Counts, between
from loadtest.live.window import Window


class PhaseCost(msgspec.Struct, frozen=True, kw_only=True):
    """Prefill or decode; None: nobody knows, because the server does not part its phases."""

    phase: str
    tokens: float
    """Computed."""
    mean_context_tokens: float | None
    gpu_seconds: float | None
    usd_per_million_tokens: float | None
    expected_usd_per_million_tokens: float | None
    times_expected: float | None


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Of the tokens computed in the window."""

    source: str
    """Where the GPU-seconds come from."""
    usd_per_hour: float
    """Of one GPU."""
    gpus: int
    gpu_seconds: float
    usd: float
    tokens: float
    """Computed: prompt tokens that were not cached, and output tokens."""
    usd_per_million_tokens: float | None
    expected_by: str
    expected_usd: float | None
    expected_usd_per_million_tokens: float | None
    times_expected: float | None
    utilisation: float | None
    """GPU-seconds of steps, of all that went by."""
    rented_usd: float
    """All GPUs for the window, idle or not."""
    rented_usd_per_million_tokens: float | None
    phases: tuple[PhaseCost, ...]


def cost_by_counters(
    scrapes: Sequence[Counts], window: Window, *, gpus: int, usd_per_hour: float | None
) -> Cost | None:
    """Returns the cost by Winnow's counters; None when they say nothing about the window.

    usd_per_hour: None takes the server's own price; another one also prices what is expected.
    """
    counts = between(scrapes, window.begin_s, window.end_s)
    if counts is None:
        return None
    price = counts.usd_per_hour if usd_per_hour is None else usd_per_hour
    # Expected dollars were made at the server's price; they are seconds in disguise.
    by_price = price / counts.usd_per_hour if counts.usd_per_hour else 0.0
    phases = []
    for phase in PHASES:
        one = counts.phases[phase]
        usd, expected = dollars(one.gpu_seconds, price), one.expected_usd * by_price
        phases.append(
            PhaseCost(
                phase=phase,
                tokens=one.computed_tokens,
                mean_context_tokens=_of(one.context_tokens, one.computed_tokens),
                gpu_seconds=one.gpu_seconds,
                usd_per_million_tokens=_of(usd * 1e6, one.computed_tokens),
                expected_usd_per_million_tokens=_of(expected * 1e6, one.computed_tokens),
                times_expected=_of(usd, expected),
            )
        )
    return _cost(
        source="the server's GPU-seconds",
        price=price,
        gpus=gpus,
        seconds=counts.seconds,
        gpu_seconds=sum(one.gpu_seconds for one in counts.phases.values()),
        tokens=sum(one.computed_tokens for one in counts.phases.values()),
        expected_by=counts.cost_model,
        expected_usd=sum(one.expected_usd for one in counts.phases.values()) * by_price,
        phases=tuple(phases),
    )


def cost_by_price(
    samples: Iterable[Sample],
    window: Window,
    *,
    gpus: int,
    usd_per_hour: float,
    expected: Chosen | None,
) -> Cost | None:
    """Returns the cost of a server that counts nothing: its GPUs for the window.

    Its tokens are those of the requests that ended in the window, so short windows are unfair to
    long requests. expected: the preset to hold it against. None when no request ended.
    """
    ended = [one for one in samples if window.holds(one.end_s) and one.outcome == "answered"]
    if not ended or window.seconds <= 0:
        return None
    computed = {
        "prefill": sum(one.prompt_tokens - one.cached_tokens for one in ended),
        "decode": sum(one.output_tokens for one in ended),
    }
    should = _expected(ended, expected, usd_per_hour) if expected else {}
    phases = tuple(
        PhaseCost(
            phase=phase,
            tokens=tokens,
            mean_context_tokens=None,
            gpu_seconds=None,
            usd_per_million_tokens=None,
            expected_usd_per_million_tokens=_of(should[phase] * 1e6, tokens) if should else None,
            times_expected=None,
        )
        for phase, tokens in computed.items()
    )
    return _cost(
        source=f"{gpus} GPUs for the whole window",
        price=usd_per_hour,
        gpus=gpus,
        seconds=window.seconds,
        gpu_seconds=gpus * window.seconds,
        tokens=sum(computed.values()),
        expected_by=expected.about if expected else "",
        expected_usd=sum(should.values()) if should else None,
        phases=phases,
        utilisation=False,
    )


def _expected(samples: Sequence[Sample], chosen: Chosen, usd_per_hour: float) -> dict[str, float]:
    longest = max(one.prompt_tokens + one.output_tokens for one in samples)
    seconds = RunningSeconds(chosen.model, longest)
    prefill_s = sum(
        seconds.span("prefill", one.cached_tokens, one.prompt_tokens) for one in samples
    )
    decode_s = sum(
        seconds.span("decode", one.prompt_tokens, one.prompt_tokens + one.output_tokens)
        for one in samples
    )
    return {"prefill": dollars(prefill_s, usd_per_hour), "decode": dollars(decode_s, usd_per_hour)}


def _cost(
    *,
    source: str,
    price: float,
    gpus: int,
    seconds: float,
    gpu_seconds: float,
    tokens: float,
    expected_by: str,
    expected_usd: float | None,
    phases: tuple[PhaseCost, ...],
    utilisation: bool = True,
) -> Cost:
    usd, rented = dollars(gpu_seconds, price), dollars(gpus * seconds, price)
    return Cost(
        source=source,
        usd_per_hour=price,
        gpus=gpus,
        gpu_seconds=gpu_seconds,
        usd=usd,
        tokens=tokens,
        usd_per_million_tokens=_of(usd * 1e6, tokens),
        expected_by=expected_by,
        expected_usd=expected_usd,
        expected_usd_per_million_tokens=(
            None if expected_usd is None else _of(expected_usd * 1e6, tokens)
        ),
        times_expected=None if expected_usd is None else _of(usd, expected_usd),
        utilisation=_of(gpu_seconds, gpus * seconds) if utilisation else None,
        rented_usd=rented,
        rented_usd_per_million_tokens=_of(rented * 1e6, tokens),
        phases=phases,
    )


def _of(value: float, whole: float) -> float | None:
    return value / whole if whole else None

"""What is published, as text: the roofline's inputs, data sheets, systems and network floors."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from cost_model.derivation import FixedTime, Share
from cost_model.machines import MACHINES, Machine
from cost_model.published import INPUTS, TABLES, Input
from cost_model.systems import FLOORS, Beside
from cost_model.tables import WIDTH, table

TIMES = ((1e-6, "us"), (1e-9, "ns"), (1e-12, "ps"))


def inputs(sensitivity: dict[str, dict[str, float]]) -> str:
    """Everything that `roofline` takes from outside, and what its choices change."""
    names = list(next(iter(sensitivity.values())))
    errors = [
        [choice, *(f"{value:+.1%}".replace("%", " %") for value in row.values())]
        for choice, row in sensitivity.items()
    ]
    return "\n\n".join(
        [
            "Published numbers of preset roofline; times in prefill are per token and layer, in\n"
            "decode per step and layer (head: per step; top_k: also per token of context)\n"
            + _published(),
            f"Data sheets\n{machines(MACHINES.values())}",
            "Largest error against the figure, signed, by choice\n" + table(["", *names], errors),
        ]
    )


def _published() -> str:
    values = [[name, _in_units(one)] for name, one in INPUTS.items()]
    columns = table(["input", "value"], values).splitlines()
    width = max(map(len, columns)) + 2
    sources = ["source", *(one.source.replace(TABLES, "[1]") for one in INPUTS.values())]
    lines = [
        textwrap.fill(f"{column:<{width}}{source}", WIDTH, subsequent_indent=" " * width)
        for column, source in zip(columns, sources, strict=True)
    ]
    return "\n".join([*lines, f"[1] {TABLES}"])


def _in_units(one: Input) -> str:
    if one.unit == "FLOP/s":
        return f"{one.value / 1e12:.4g} TFLOP/s"
    if not one.unit.startswith("s/"):
        return f"{one.value:.4g}"
    size, unit = next(known for known in TIMES if one.value >= known[0])
    return f"{one.value / size:.4g} {unit}"


def machines(found: Iterable[Machine]) -> str:
    """Data sheets and their sources."""
    rows, sources = [], []
    for one in found:
        rows.append(
            [
                one.name,
                _number(one.bf16_flops / 1e12),
                _number(one.fp8_flops / 1e12),
                _number(one.memory_bandwidth / 1e12),
                _number(one.memory_bytes / 1e9),
                _number(one.scale_up_bandwidth / 1e9),
                _number(one.scale_out_bandwidth / 1e9),
                f"{one.usd_per_hour:g}",
            ]
        )
        sources.append(textwrap.fill(f"{one.name}: {one.source}", WIDTH, subsequent_indent="    "))
    header = [
        "",
        "bf16 TFLOP/s",
        "fp8 TFLOP/s",
        "memory TB/s",
        "memory GB",
        "scale-up GB/s",
        "network GB/s",
        "USD/h",
    ]
    return "\n".join([table(header, rows), *sources])


def systems(found: Sequence[Beside], about: str) -> str:
    """Published systems beside a preset, and the floor that the network sets."""
    rows = [
        [
            one.system.name,
            one.system.phase,
            f"{one.system.tokens_per_second_per_node:,.0f}",
            f"{one.system.cached_share:.1%}".replace("%", " %"),
            f"{one.system.mean_position:,}",
            f"{one.usd_per_million_tokens:.3f}",
            f"{one.preset_usd_per_million_tokens:.3f}",
            f"{one.ratio:.2f}x",
        ]
        for one in found
    ]
    header = ["system", "phase", "tokens/s/node", "cached", "position", "USD/M", "preset", "ratio"]
    sources = dict.fromkeys(one.system.source for one in found)
    floors = [
        [one.phase, one.routing, f"{one.seconds * 1e6:.0f}", f"{one.usd_per_million_tokens:.3f}"]
        for one in FLOORS
    ]
    return "\n\n".join(
        [
            f"Published systems, USD per million computed tokens beside\n{about}",
            "\n".join([table(header, rows, left=2), *sources]),
            "Time on the network of one token's dispatch and combine, which no preset adds\n"
            + "\n".join(
                [
                    table(["phase", "routing", "us per token", "USD/M"], floors, left=2),
                    *(one.source for one in FLOORS),
                ]
            ),
        ]
    )


def derivation(fixed: Sequence[FixedTime], found: Sequence[Share]) -> str:
    """The figure's starts and slopes, and the shares of peak they imply."""
    starts = [
        [one.curve, f"{one.usd_per_million_tokens:.6f}", f"{one.seconds * 1e6:.3f}"]
        for one in fixed
    ]
    rows = [
        [
            one.curve,
            one.component,
            f"{one.flops:,}",
            f"{one.seconds * 1e12:.4f}",
            f"{one.flops / one.seconds / 1e12:.2f}",
            f"{one.peak_flops / 1e12:,.1f}",
            ("" if one.exact else "at most ") + f"{one.share:.5f}",
        ]
        for one in found
    ]
    header = ["curve", "component", "FLOPs", "ps", "TFLOP/s", "peak", "share"]
    return "\n\n".join(
        [
            "At position 0\n" + table(["curve", "USD per million", "us per token"], starts),
            "With each token of context: FLOPs in all layers, time, rate and the H800's peak\n"
            + table(header, rows, left=2),
        ]
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 and value < 1e5 else f"{value:.4g}"

"""The answers of `winnow cost` as text: aligned tables with their units, 100 columns at most."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from cost_model.answers import Comparison, PhaseCost, Request, Trajectory
from cost_model.capacity import PAGE_TOKENS, Capacity
from cost_model.model import PHASES
from cost_model.reproduction import CurveAnswer, Figure3
from cost_model.trajectory import POLICIES

WIDTH = 100
NONE = "-"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Rows under a header; the first `left` columns are flush left, the others flush right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def figure3(answer: Figure3) -> str:
    """Errors and knees of every preset, then dollars by position beside the figure's."""
    summary = []
    for preset, lines in answer.items():
        for name, line in lines.items():
            summary.append(
                [
                    preset,
                    name,
                    _percent(line.max_relative_error),
                    f"{line.worst_position:,}",
                    _percent(line.max_relative_error_of_vertices, digits=4),
                    _numbers(line.knees),
                ]
            )
    header = ["preset", "curve", "largest error", "at position", "at the vertices", "knees"]
    parts = [
        "Figure 3 of the DeepSeek-V3.2 report: an H800 cluster at 2 USD per GPU-hour",
        table(header, summary, left=2),
    ]
    for phase in PHASES:
        lines_of_phase = {
            (preset, name): line
            for preset, lines in answer.items()
            for name, line in lines.items()
            if name.startswith(phase)
        }
        parts.append(f"{phase}, USD per million tokens\n{_by_position(lines_of_phase)}")
    return "\n\n".join(parts)


def _by_position(lines: dict[tuple[str, str], CurveAnswer]) -> str:
    names = list(dict.fromkeys(name for _, name in lines))
    shared = set.intersection(*(set(line.positions) for line in lines.values()))
    header, columns = ["position"], []
    for name in names:
        of_name = {preset: line for (preset, other), line in lines.items() if other == name}
        drawn = next(iter(of_name.values()))
        header += [f"{name.split()[1]} figure", *of_name]
        columns.append(_column(drawn, drawn.drawn_usd_per_million_tokens))
        columns += [_column(line, line.usd_per_million_tokens) for line in of_name.values()]
    rows = [
        [f"{position:,}", *(f"{column[position]:.4f}" for column in columns)]
        for position in sorted(shared)
    ]
    return table(header, rows, left=0)


def _column(line: CurveAnswer, values: list[float]) -> dict[int, float]:
    return dict(zip(line.positions, values, strict=True))


def request(answer: Request, about: str) -> str:
    """Dollars by phase and component."""
    title = (
        f"A request: {answer.prompt_tokens:,} prompt tokens ({answer.cached_tokens:,} cached), "
        f"{answer.output_tokens:,} output tokens\n{about}"
    )
    rows: list[list[str]] = []
    for phase, cost in (("prefill", answer.prefill), ("decode", answer.decode)):
        rows += [_cost_row(phase, cost, answer.usd)]
        for name, usd in cost.usd_by_component.items():
            seconds = cost.gpu_seconds_by_component[name]
            per_million = _rate(usd, cost.tokens)
            rows.append([f"  {name}", "", f"{seconds:.4f}", _usd(usd), per_million, ""])
            rows[-1][-1] = _share(usd, answer.usd)
    rows.append(["total", "", f"{answer.gpu_seconds:.4f}", _usd(answer.usd), "", "100.0 %"])
    header = ["", "tokens", "GPU-seconds", "USD", "USD per million", "share"]
    return "\n\n".join([title, table(header, rows), *_estimated(answer.estimated)])


def _cost_row(phase: str, cost: PhaseCost, whole: float) -> list[str]:
    return [
        phase,
        f"{cost.tokens:,}",
        f"{cost.gpu_seconds:.4f}",
        _usd(cost.usd),
        _rate(cost.usd, cost.tokens),
        _share(cost.usd, whole),
    ]


def trajectory(answer: Trajectory, about: str) -> str:
    """The three policies side by side."""
    loop = answer.loop
    title = (
        f"A tool loop of {loop.steps:,} steps: prompt {loop.prompt:,}, each step reasoning "
        f"{loop.reasoning:,}, call {loop.call:,},\ntool result {loop.tool_result:,} tokens; "
        f"window {loop.window:,}, of which managed discards {loop.discard:.0%} when it is full\n"
        f"{about}"
    )
    policies = [answer.policies[name] for name in POLICIES]
    kept = policies[0].usd / policies[0].steps
    rows = [
        ["steps", *(f"{one.steps:,}" for one in policies)],
        ["complete", *("yes" if one.complete else "no, window full" for one in policies)],
        ["prompt tokens computed", *(f"{one.computed_tokens:,}" for one in policies)],
        ["prompt tokens from the cache", *(f"{one.cached_tokens:,}" for one in policies)],
        ["output tokens", *(f"{one.output_tokens:,}" for one in policies)],
        ["longest context, tokens", *(f"{one.longest_context_tokens:,}" for one in policies)],
        ["GPU-seconds", *(f"{one.gpu_seconds:.3f}" for one in policies)],
    ]
    components = list(dict.fromkeys(name for one in policies for name in one.usd_by_component))
    for name in components:
        rows.append(
            [f"USD {name}", *(_usd(one.usd_by_component.get(name, 0.0)) for one in policies)]
        )
    rows += [
        ["USD", *(_usd(one.usd) for one in policies)],
        ["USD per step", *(_usd(one.usd / one.steps) for one in policies)],
        [
            "per step, against kept",
            *(f"{one.usd / one.steps / kept:.3f}x" if kept else NONE for one in policies),
        ],
    ]
    return "\n\n".join([title, table(["", *POLICIES], rows), *_estimated(answer.estimated)])


def compare(answer: Comparison, about: str) -> str:
    """Costs by position, means, break-evens and knees of two models."""
    one, other = answer.models
    parts = [f"{one} beside {other}\n{about}"]
    for phase, found in answer.phases.items():
        left, right = found.usd_per_million_tokens
        rows = [
            [f"{position:,}", f"{a:.4f}", f"{b:.4f}", _times(ratio)]
            for position, a, b, ratio in zip(
                answer.positions, left, right, found.ratio, strict=True
            )
        ]
        mean_left, mean_right = found.mean_usd_per_million_tokens
        rows.append(
            ["mean 0 to 131,071", f"{mean_left:.4f}", f"{mean_right:.4f}", _times(found.mean_ratio)]
        )
        facts = [
            f"cheaper at the end: {found.cheaper}, from position {found.cheaper_from_position:,}"
            if found.cheaper is not None
            else "cheaper at the end: neither",
            f"knees: {one} at {_numbers(found.knees[0])}; {other} at {_numbers(found.knees[1])}",
        ]
        if found.reached_at_position is not None:
            at = [
                "nowhere" if position is None else f"{position:,}"
                for position in found.reached_at_position
            ]
            facts.append(f"the cost asked for is reached at: {one} {at[0]}; {other} {at[1]}")
        header = ["position", one, other, "ratio"]
        parts.append("\n".join([f"{phase}, USD per million tokens", table(header, rows), *facts]))
    return "\n\n".join(parts)


def capacity(answer: Capacity, about: str) -> str:
    """Where the memory goes, and what the batch that fits makes."""
    rows = [
        ["weights, GB per GPU", f"{answer.weight_bytes / 1e9:.2f}"],
        ["reserved, GB per GPU", f"{answer.reserved_bytes / 1e9:.2f}"],
        ["pages, GB per GPU", f"{answer.cache_bytes / 1e9:.2f}"],
        ["cache bytes per token", f"{answer.bytes_per_token:,}"],
        [f"pages of {PAGE_TOKENS} tokens per GPU", f"{answer.pages:,}"],
        ["sequences per GPU", f"{answer.sequences:,}"],
        ["decode step, ms", f"{answer.step_seconds * 1e3:.2f}"],
        ["tokens/s of one sequence", f"{1 / answer.step_seconds:.1f}"],
        ["tokens/s per GPU", f"{answer.tokens_per_second:,.0f}"],
        ["tokens/s of all GPUs", f"{answer.tokens_per_second_all_gpus:,.0f}"],
        ["USD per million output tokens", f"{answer.usd_per_million_tokens:.4f}"],
    ]
    title = (
        f"Decoding {answer.context_tokens:,} tokens into each sequence on {answer.gpus:,} GPUs\n"
        f"{about}"
    )
    return f"{title}\n\n{table(['', ''], rows).lstrip()}"


def _estimated(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    text = f"not in the file, so the roofline's: {', '.join(names)}"
    return [textwrap.fill(text, WIDTH, break_on_hyphens=False)]


def _percent(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f} %"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else NONE


def _times(ratio: float | None) -> str:
    return NONE if ratio is None else f"{ratio:.2f}x"


def _rate(usd: float, tokens: int) -> str:
    return f"{usd / tokens * 1e6:.4f}" if tokens else NONE


def _usd(value: float) -> str:
    return f"{value:.6f}"


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(f"{one:,}" for one in values) or NONE

"""What the benchmark found: lines, a table, and a table of operator times for `cost_model`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kernels.bench.case import Case, Work
from kernels.bench.clock import Ceilings

BATCH = 64
"""Decoded tokens a step of the cases that stand in the table."""


@dataclass(frozen=True)
class Line:
    """One case's result."""

    case: Case
    error: float | None
    """None: it failed, see `failure`."""
    seconds: float | None
    """None: not timed, because its result is wrong or it failed."""
    failure: str = ""
    """What went wrong, unless it is the error alone."""

    @property
    def right(self) -> bool:
        """Whether its result is within tolerance, and the same in every run."""
        if self.failure or self.error is None:
            return False
        return self.error <= self.case.tolerance


def floor_seconds(work: Work, ceilings: Ceilings) -> float:
    """Returns the least seconds for the work: by products or by bytes, whichever takes longer."""
    flops_per_s = {
        "fp8": ceilings.fp8_flops_per_s,
        "bf16": ceilings.bf16_flops_per_s,
        "none": float("inf"),
    }[work.products]
    return max(work.flops / flops_per_s, work.bytes / ceilings.bytes_per_s)


def bound(work: Work, ceilings: Ceilings) -> str:
    """Returns which of the two it is."""
    by_bytes = work.bytes / ceilings.bytes_per_s
    return "bytes" if floor_seconds(work, ceilings) <= by_bytes else work.products


def outcome(line: Line, ceilings: Ceilings) -> str:
    """Returns the line's result in a few words."""
    if line.failure or line.error is None:
        return line.failure
    check = f"error {line.error:.1e}, " + verdict(line)
    if line.seconds is None:
        return check
    share = floor_seconds(line.case.work, ceilings) / line.seconds
    return f"{line.seconds * 1e6:.1f} us, {share:.0%} of ceiling, {check}"


def verdict(line: Line) -> str:
    """Returns what its check says."""
    return line.failure or ("ok" if line.right else f"above {line.case.tolerance:.0e}")


def table(lines: Sequence[Line], ceilings: Ceilings) -> str:
    """Returns the lines as a Markdown table."""
    rows = [["op", "shape", "us", "TFLOPS", "GB/s", "bound", "of ceiling", "error", "check"]]
    for line in lines:
        work, seconds = line.case.work, line.seconds
        row = [line.case.op, line.case.shape]
        if seconds is None:
            row += ["-"] * 5
        else:
            share = floor_seconds(work, ceilings) / seconds
            flops = f"{work.flops / seconds / 1e12:.0f}" if work.flops else ""
            row += [f"{seconds * 1e6:.1f}", flops, f"{work.bytes / seconds / 1e9:.0f}"]
            row += [bound(work, ceilings), f"{share:.0%}"]
        row.append("-" if line.error is None else f"{line.error:.1e}")
        row.append(verdict(line))
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rows.insert(1, ["-" * width for width in widths])
    texts = [" | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(f"| {text} |" for text in texts)


def operator_times(
    every: Sequence[Case],
    lines: Sequence[Line],
    *,
    machine: str,
    date: str,
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """Returns a table in the format "winnow operator times", version 1.

    A component's time at a context is the sum of its cases there. Where one of them is missing or
    wrong, the whole component is left out: half a time would look like a fast one.
    every: all cases there are, those that were not run included.
    """
    found = {id(line.case): line.seconds for line in lines if line.right}
    parts: dict[tuple[str, str], dict[int, list[float | None]]] = defaultdict(dict)
    for case in every:
        if (place := case.place) is None:
            continue
        seconds = found.get(id(case))
        share = None if seconds is None else seconds * place.layers / place.tokens
        points = parts[place.phase, place.component]
        points.setdefault(place.context_tokens, []).append(share)
    phases: dict[str, dict[str, Any]] = {"prefill": {}, "decode": {}}
    for (phase, component), points in parts.items():
        times = {
            context: sum(part for part in shares if part is not None)
            for context, shares in sorted(points.items())
            if None not in shares
        }
        if len(times) == len(points):
            phases[phase][component] = {
                "context_tokens": list(times),
                "seconds": list(times.values()),
            }
    return {
        "format": "winnow operator times",
        "version": 1,
        "machine": machine,
        "date": date,
        "versions": dict(versions),
        "model": "v3.2",
        "fallback_machine": "h200" if "H200" in machine else "h800",
        "batch": BATCH,
        **phases,
    }


def details(lines: Sequence[Line], ceilings: Ceilings) -> dict[str, Any]:
    """Returns every line and the ceilings for programs."""
    return {
        "ceilings": asdict(ceilings),
        "cases": [
            {
                "op": line.case.op,
                "shape": line.case.shape,
                "flops": line.case.work.flops,
                "bytes": line.case.work.bytes,
                "products": line.case.work.products,
                "seconds": line.seconds,
                "floor_seconds": floor_seconds(line.case.work, ceilings),
                "error": line.error,
                "tolerance": line.case.tolerance,
                "failure": line.failure,
            }
            for line in lines
        ],
    }

"""What a run ran on, and tables a person and a program can read."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch


class Machine(msgspec.Struct, frozen=True):
    """Where and with what something was measured."""

    processor: str
    cores: int
    threads: int
    load_average: float
    """Of the last minute when the run began: above 0.1 a core, other programs took part."""
    system: str
    python: str
    versions: dict[str, str]
    commit: str
    """Of this repository, with -dirty when files differ from it; empty outside a checkout."""


def machine(packages: Sequence[str] = ("torch",), *, threads: int | None = None) -> Machine:
    """Describes this machine, the torch threads (of this process) and those of `packages` that
    are installed, by the names they are installed under."""
    return Machine(
        processor=_processor(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads() if threads is None else threads,
        load_average=os.getloadavg()[0],
        system=platform.platform(),
        python=platform.python_version(),
        versions={name: version for name in packages if (version := _version(name))},
        commit=_commit(),
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def describe(m: Machine) -> str:
    """Returns one line about a machine."""
    versions = ", ".join(f"{name} {version}" for name, version in m.versions.items())
    return (
        f"{m.processor}, {m.cores} cores, {m.threads} threads, load {m.load_average:.2f}; "
        f"Python {m.python}, {versions}; commit {m.commit or 'unknown'}"
    )


class CpuTime(msgspec.Struct, frozen=True):
    """What the processors did since the machine started, in the kernel's ticks."""

    ticks: int = 0
    stolen: int = 0
    """Ticks in which a virtual machine wanted to run and its host did not let it."""

    @classmethod
    def now(cls) -> CpuTime:
        """Returns it as /proc/stat says; nothing where there is no such file."""
        file = Path("/proc/stat")
        if not file.exists():
            return cls()
        # cpu user nice system idle iowait irq softirq steal guest guest_nice; user has guest's too.
        ticks = [int(field) for field in file.read_text().splitlines()[0].split()[1:9]]
        return cls(sum(ticks), ticks[7] if len(ticks) > 7 else 0)

    def stolen_share(self, later: CpuTime) -> float:
        """Returns which part of the time until `later` the host took away."""
        return (later.stolen - self.stolen) / max(1, later.ticks - self.ticks)


def disturbance(stolen_share: float) -> str:
    """Returns a sentence about the host of a virtual machine."""
    return f"The host took {stolen_share:.0%} of the processors' time away meanwhile."


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table; columns after the first are right-aligned."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def text(line: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join([text(lines[0]), text(rule), *map(text, lines[1:])])


def milliseconds(seconds: float) -> str:
    """Returns seconds as milliseconds with three digits that matter."""
    value = seconds * 1e3
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"

"""One table of what every tuned specialisation of every op uses of an SM, and whether it may.

    python -m kernels.hopper.report              all ops, as a table
    python -m kernels.hopper.report sparse_mla   some of them
    python -m kernels.hopper.report --json       for programs

Exits with 1 when a specialisation does not compile or breaks its budget. Needs no GPU.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import Any

import triton

import kernels.hopper
from kernels.hopper.specialisation import (
    Resources,
    Specialisation,
    broken_limits,
    compile_for_hopper,
)

MMA_OPCODES = ("QGMMA", "HGMMA", "HMMA")
COPY_OPCODES = ("UTMALDG", "LDGSTS", "LDG")


@dataclass(frozen=True)
class Entry:
    """One line of the report."""

    op: str
    name: str
    warps: int
    stages: int
    resources: Resources | None
    """None when it does not compile."""
    broken: list[str]
    """What is wrong with it, a sentence each."""


def module_names() -> list[str]:
    """Returns the names of all modules in this folder."""
    return [found.name for found in pkgutil.iter_modules(kernels.hopper.__path__)]


def module(name: str) -> Any:
    """Returns the module of this folder with this name."""
    return importlib.import_module(f"kernels.hopper.{name}")


def op_names() -> list[str]:
    """Returns the names of the modules in this folder that declare SPECIALISATIONS."""
    return [name for name in module_names() if hasattr(module(name), "SPECIALISATIONS")]


def specialisations(op: str) -> dict[str, Specialisation]:
    """Returns an op's specialisations by name; raises ValueError when two share a name."""
    declared: Sequence[Specialisation] = module(op).SPECIALISATIONS
    by_name = {s.name: s for s in declared}
    if len(by_name) != len(declared):
        raise ValueError(f"two specialisations of {op} share a name: {[s.name for s in declared]}")
    return by_name


def examine(op: str, name: str) -> Entry:
    """Returns the report's line on one specialisation, compiled in this process."""
    specialisation = specialisations(op)[name]
    shape = op, name, specialisation.warps, specialisation.stages
    try:
        resources = compile_for_hopper(specialisation)
    except Exception as error:  # compilers raise what they like; the report goes on and says so
        message = " ".join((str(error) or type(error).__name__).split())
        return Entry(*shape, None, [f"does not compile: {message[-400:]}"])
    return Entry(*shape, resources, broken_limits(specialisation.budget, resources))


def examine_all(ops: Iterable[str], processes: int) -> Iterator[Entry]:
    """Yields the entries of the ops' specialisations as they are ready, with a bar on stderr."""
    wanted = [(op, name) for op in ops for name in specialisations(op)]
    # Forked children of a process that has compiled would share the compiler's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(wanted)) or 1, mp_context=context) as pool:
        running = [pool.submit(examine, op, name) for op, name in wanted]
        for done, future in enumerate(as_completed(running), start=1):
            _progress(done, len(wanted))
            yield future.result()


def table(entries: Sequence[Entry]) -> str:
    """Returns the report as a Markdown table."""
    head = [
        "op", "specialisation", "warps", "stages", "registers", "spilled B", "shared B",
        "CTAs/SM", "MMA", "copies", "instructions", "budget",
    ]  # fmt: skip
    rows = [head, ["---"] * len(head)]
    for entry in entries:
        row = [entry.op, entry.name, str(entry.warps), str(entry.stages)]
        if (used := entry.resources) is None:
            row += ["-"] * 7
        else:
            numbers = used.registers, used.spilled_bytes, used.shared_bytes, used.ctas_per_sm
            row += [f"{number:,}" for number in numbers]
            row += [_counts(used, MMA_OPCODES), _counts(used, COPY_OPCODES)]
            row.append(f"{sum(used.instructions.values()):,}")
        rows.append([*row, "; ".join(entry.broken) or "held"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [" | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the report; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m kernels.hopper.report", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("ops", nargs="*", metavar="op", help="only these (default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args(arguments)
    known = op_names()
    if unknown := [op for op in chosen.ops if op not in known]:
        parser.error(f"unknown op {', '.join(unknown)}; there are {', '.join(known)}")
    if chosen.processes < 1:
        parser.error(f"--processes is {chosen.processes}; at least 1 is needed")
    ops = chosen.ops or known
    order = [(op, name) for op in ops for name in specialisations(op)]
    entries = sorted(
        examine_all(ops, chosen.processes), key=lambda entry: order.index((entry.op, entry.name))
    )
    if chosen.json:
        document = {"triton": triton.__version__, "entries": [asdict(e) for e in entries]}
        print(json.dumps(document, indent=1))
    else:
        print(f"sm_90, triton {triton.__version__}\n\n{table(entries)}")
    return int(any(entry.broken for entry in entries))


def _counts(resources: Resources, opcodes: Sequence[str]) -> str:
    found = {opcode: resources.instructions.get(opcode, 0) for opcode in opcodes}
    return " ".join(f"{opcode} {count}" for opcode, count in found.items() if count) or "none"


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        filled = 40 * done // total
        end = "\n" if done == total else ""
        print(f"\r[{'#' * filled:40}] {done}/{total}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

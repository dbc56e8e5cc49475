"""Runs the benchmark: see `python -m kernels.bench --help`."""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from kernels.bench.case import Case
    from kernels.bench.clock import Clock
    from kernels.bench.report import Line

EPILOG = """\
examples:
  python -m kernels.bench
  python -m kernels.bench --op sparse_mla topk --details lines.json
  python -m kernels.bench --json h200.json && winnow cost figure3 --preset h200.json

Each result is printed, and the files are written, before the next case begins. sparse_mla_gluon is
run where --op names it.

Exit status: 0 all checks held, 1 one did not, 2 nothing could be measured here.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what was asked for; returns the exit status."""
    options = _parser().parse_args(arguments)
    if reason := missing():
        print(f"kernels.bench: {reason}", file=sys.stderr)
        return 2
    # All of these need triton, whose absence has a message of its own.
    import triton

    from kernels.bench.clock import Clock
    from kernels.bench.every import BY_REQUEST, every_case
    from kernels.bench.report import details, operator_times, outcome, table

    cases = every_case()
    known = sorted({case.op for case in cases})
    if unknown := sorted(set(options.op or ()) - set(known)):
        there = ", ".join(known)
        print(f"kernels.bench: no op {', '.join(unknown)}; there are {there}", file=sys.stderr)
        return 2
    wanted = [
        case
        for case in cases
        if (case.op in options.op if options.op else case.op not in BY_REQUEST)
        and (case.quick or not options.quick)
    ]
    device = torch.device("cuda", torch.cuda.current_device())
    torch.manual_seed(0)
    clock = Clock(device, runs=5 if options.quick else 20, longest_s=0.5)
    ceilings = clock.ceilings()
    machine = torch.cuda.get_device_name(device)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
    print(f"{machine}; " + ", ".join(f"{name} {value}" for name, value in versions.items()))
    fp8 = "twice bf16's, assumed" if ceilings.fp8_is_assumed else "measured"
    print(
        f"ceilings: copy {ceilings.bytes_per_s / 1e9:.0f} GB/s, products "
        f"{ceilings.bf16_flops_per_s / 1e12:.0f} TFLOPS in bf16, "
        f"{ceilings.fp8_flops_per_s / 1e12:.0f} in fp8 ({fp8})\n"
    )
    today = datetime.date.today().isoformat()
    lines: list[Line] = []
    for number, case in enumerate(wanted, start=1):
        # What was found before a case that hangs, or is killed, must be there to be read.
        print(f"{number}/{len(wanted)} {case.op}, {case.shape}: ", end="", flush=True)
        lines.append(_measured(case, clock))
        print(outcome(lines[-1], ceilings), flush=True)
        if options.json:
            content = operator_times(cases, lines, machine=machine, date=today, versions=versions)
            options.json.write_text(json.dumps(content, indent=1) + "\n")
        if options.details:
            content = {"machine": machine, "versions": versions} | details(lines, ceilings)
            options.details.write_text(json.dumps(content, indent=1) + "\n")
    print("\n" + table(lines, ceilings))
    return 0 if all(line.right for line in lines) else 1


def missing() -> str | None:
    """Returns why nothing can be measured here; None: it can."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA device; the kernels are for Hopper GPUs (H100, H200, H800)"
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    if capability != (9, 0):
        found = ".".join(map(str, capability))
        return f"{name} has compute capability {found}; the kernels are for 9.0 (H100, H200, H800)"
    return None if find_spec("triton") else "triton is not installed"


def _measured(case: Case, clock: Clock) -> Line:
    """Checks a case and, if it is right, times it; what goes wrong is in the line."""
    from kernels.bench.case import RERUNS, other_bits
    from kernels.bench.report import Line

    try:
        # Of the case before. It raises, as everything does, after an error that leaves no context.
        torch.cuda.empty_cache()
        prepared = case.prepare(clock.device)
        error = prepared.error()
        if not error <= case.tolerance:
            return Line(case, error, None)
        if others := other_bits(prepared):
            return Line(case, error, None, f"{others} of {RERUNS} reruns gave other bits")
        return Line(case, error, clock.seconds(prepared.run))
    except Exception as failure:
        # Triton's errors have no common base with torch's. One op that does not run must not hide
        # the others; the line and the exit status say it.
        message = " ".join(str(failure).split())
        return Line(case, None, None, f"{type(failure).__name__}: {message[:120]}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kernels.bench",
        description="Check and time every kernel at the sizes of DeepSeek-V3.2 (671B).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--op", nargs="+", metavar="OP", help="only these ops")
    parser.add_argument("--quick", action="store_true", help="one shape an op or two, few runs")
    parser.add_argument("--json", type=Path, help="operator times for cost_model's `measured`")
    parser.add_argument("--details", type=Path, help="every line, for programs")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Every tuned specialisation of every op, compiled for sm_90, keeps its budget.

Compiling and interpreting exclude each other within a process: the report runs in one of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kernels.hopper.report import op_names, specialisations

ROOT = Path(__file__).parents[3]


def declared() -> list[tuple[str, str]]:
    return [(op, name) for op in op_names() for name in specialisations(op)]


@pytest.fixture(scope="session")
def report() -> dict[tuple[str, str], Any]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "kernels.hopper.report", "--json"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stderr
    entries = json.loads(done.stdout)["entries"]
    return {(entry["op"], entry["name"]): entry for entry in entries}


@pytest.mark.parametrize(("op", "name"), declared())
def test_a_specialisation_keeps_its_budget(
    report: dict[tuple[str, str], Any], op: str, name: str
) -> None:
    entry = report[op, name]
    assert not entry["broken"], "; ".join(entry["broken"])

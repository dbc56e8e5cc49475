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


def test_variants_that_must_give_the_same_bits_round_alike(
    report: dict[tuple[str, str], Any],
) -> None:
    """A part of a sum and a whole one are written in different dtypes: where products are fused
    into sums must not depend on that."""
    op = "fixed_order_fp8_linear"
    found = [report[op, name]["resources"]["instructions"] for name in specialisations(op)]
    for opcode in ("FFMA", "FADD", "FMUL", "QGMMA"):
        counts = {instructions.get(opcode, 0) for instructions in found}
        assert len(found) == 2 and len(counts) == 1 and counts != {0}, opcode


@pytest.mark.parametrize("name", specialisations("sparse_mla_gluon"))
def test_products_of_the_gluon_kernel_are_waited_for_together(
    report: dict[tuple[str, str], Any], name: str
) -> None:
    """Where the compiler sees a register of a product in use, it waits for each by itself."""
    found = report["sparse_mla_gluon", name]["resources"]["instructions"]
    # Queries by keys, and both halves by weights: started once and waited for once each, except
    # that the rotary product starts behind the latent one.
    assert found["HGMMA"] == 36 + 4 + 4 and found["WARPGROUP"] <= 3 * 2 + 1

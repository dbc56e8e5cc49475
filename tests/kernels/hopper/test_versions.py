"""The kernels on other versions of triton, which `make check` installs beside ours.

3.6 comes with the oldest torch that is supported; the other is the newest release.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
KNOWN: dict[str, set[tuple[str, str]]] = {
    "3.6.0": {("dense_mla", "bf16 h32 partial")},
    "3.9.0": {
        ("dense_mla", "bf16 h64 partial"),
        ("dense_mla", "bf16 h128"),
        ("dense_mla", "bf16 h128 partial"),
        ("paged_indexer_logits", "4_rows"),
        ("sampling", "one row a program"),
        ("topk", "prefill"),
    },
}
"""Version -> specialisations that break their budget there: they run, and keep registers in
memory that they should not."""
INTERPRETED = ["3.6.0"]
"""The interpreter of 3.9.0 refuses the mask of a load in dense_mha that other versions take."""


def environment(version: str) -> dict[str, str]:
    """The variables of a process that imports this version."""
    folder = ROOT / f".venv-triton-{version}"
    assert (folder / ".installed").exists(), f"`make {folder.name}/.installed` installs it"
    kept = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    return kept | {"PYTHONPATH": str(folder)}


@pytest.mark.check
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", KNOWN)
def test_every_specialisation_but_those_known_keeps_its_budget(version: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kernels.hopper.report", "--json"],
        cwd=ROOT,
        env=environment(version),
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stderr
    report = json.loads(done.stdout)
    assert report["triton"] == version
    broken = {(e["op"], e["name"]): e["broken"] for e in report["entries"] if e["broken"]}
    assert set(broken) == KNOWN[version], broken


@pytest.mark.check
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("version", INTERPRETED)
def test_the_interpreter_agrees_with_the_references(version: str) -> None:
    tests = [sys.executable, "-m", "pytest", "tests/kernels/hopper", "-m", "not check and not gpu"]
    # Its own code does with numpy what numpy no longer likes.
    tests += ["-W", "ignore::DeprecationWarning"]
    done = subprocess.run(
        [*tests, "--ignore", "tests/kernels/hopper/test_compile.py", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=environment(version),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]

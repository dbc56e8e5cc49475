"""tests.fuzz.run: its rounds are made of tests that exist."""

from __future__ import annotations

import subprocess
import sys

from tests.fuzz.run import ROOT, TESTS


def test_every_file_of_a_round_has_tests() -> None:
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider", *TESTS],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert collected.returncode == 0, collected.stdout
    found = {line.partition(":")[0] for line in collected.stdout.splitlines() if ":" in line}
    assert found == set(TESTS)

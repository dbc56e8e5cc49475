"""deploy.ray.leash: a command does not outlive whoever started it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

LEASH = Path(__file__).parents[3] / "deploy" / "ray" / "leash.py"
PATIENCE_S = 60
POLITE = "import time; print('up', flush=True); time.sleep(600)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + POLITE


def leashed(program: str, grace_s: float = 60) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, str(LEASH), str(grace_s), sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    return process


def up(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"


def end(process: subprocess.Popen[str]) -> int:
    """Its status when it has ended, and its command with it: standard output is closed."""
    assert process.stdout is not None
    process.stdout.read()
    process.stdout.close()
    return process.wait(PATIENCE_S)


@pytest.mark.parametrize(
    ("program", "grace_s", "number"),
    [(POLITE, 60, signal.SIGTERM), (DEAF, 0.1, signal.SIGKILL)],
)
def test_it_ends_when_its_starter_says_so(
    program: str, grace_s: float, number: signal.Signals
) -> None:
    process = leashed(program, grace_s)
    up(process)
    assert process.stdin is not None
    process.stdin.write("stop\n")
    process.stdin.close()
    assert end(process) == 128 + number


def test_it_ends_when_its_starter_is_killed() -> None:
    starter = (
        "import subprocess, sys; "
        f"subprocess.Popen([sys.executable, {str(LEASH)!r}, '60', sys.executable, '-c', {POLITE!r}]"
        ", stdin=subprocess.PIPE).wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True)
    up(process)
    process.kill()
    assert end(process) == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of this death")
def test_it_ends_when_the_leash_is_killed() -> None:
    process = leashed(POLITE)
    up(process)
    process.kill()
    assert end(process) == -signal.SIGKILL
    assert process.stdin is not None
    process.stdin.close()


def test_a_signal_to_the_leash_is_one_to_the_command() -> None:
    process = leashed(POLITE)
    up(process)
    process.terminate()
    assert end(process) == 128 + signal.SIGTERM
    assert process.stdin is not None
    process.stdin.close()


def test_the_status_is_the_command_s() -> None:
    process = leashed("raise SystemExit(3)")
    assert end(process) == 3
    assert process.stdin is not None
    process.stdin.close()

"""A server of our own to put under load: `winnow serve` in a process that ends with the test."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from loadtest.live.service import ServiceError

START_LIMIT_S = 300.0
STOP_LIMIT_S = 60.0
SERVER_NICENESS = 5
"""Below the load generator's: on a small machine the two share cores, and a generator that waits
for the server would measure its own waiting."""
_URL = re.compile(r"^ +url +(https?://\S+)/v1\b", re.MULTILINE)


@contextmanager
def served(options: Sequence[str]) -> Iterator[str]:
    """Runs `winnow serve` on a free port until the block ends; yields its URL.

    Raises ServiceError with the end of its log when it stops or is not ready in START_LIMIT_S.
    """
    threads = str(max(1, (os.cpu_count() or 1) - 1))
    command = [sys.executable, "-m", "winnow", "serve", "--port", "0", *options]
    if not any(option.startswith("--threads") for option in options):
        command += ["--threads", threads]
    if nice := shutil.which("nice"):
        command = [nice, "-n", str(SERVER_NICENESS), *command]
    with _unwinding(), tempfile.TemporaryDirectory(prefix="winnow-load-") as folder:
        log = Path(folder) / "server.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                command,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": threads},
                start_new_session=True,
            )
        try:
            yield _url(process, log)
        finally:
            process.terminate()
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def _unwinding() -> Iterator[None]:
    """Within it SIGTERM ends this process only after the server has been told to stop."""
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    limit_s = time.monotonic() + START_LIMIT_S
    while time.monotonic() < limit_s:
        text = log.read_text(errors="replace")
        if found := _URL.search(text):
            return found[1]
        if process.poll() is not None:
            raise ServiceError(f"winnow serve stopped with {process.returncode}:\n{text[-2000:]}")
        time.sleep(0.1)
    raise ServiceError(f"winnow serve was not ready in {START_LIMIT_S:g} s:\n{text[-2000:]}")

"""Runs a command that must not outlive whoever started it, however that one ends.

    python leash.py GRACE_S COMMAND ...

The starter holds the other end of standard input. A line there asks the command to stop: SIGTERM,
and GRACE_S later SIGKILL. If it closes without one, the starter was killed; nobody waits for
answers any more, and a successor may want the device: SIGKILL at once, to the command's whole
process group. If the leash itself is killed, Linux kills the command. The exit status is the
command's. Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> int:
    """Runs the command to its end; returns its exit status, 128 + signal if a signal ended it."""
    grace_s, command = float(arguments[0]), arguments[1:]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_tied()
    )
    # Whoever stops the leash means the command; it drains, and then the leash ends as well.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: process.terminate())
    threading.Thread(target=_follow, args=(process, grace_s), daemon=True).start()
    status = process.wait()
    return status if status >= 0 else 128 - status


def _tied() -> Callable[[], None] | None:
    """What the command's process does first: Ray kills the children of a worker that ends, and so
    the leash, but not their children."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _follow(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """Ends the process as standard input says."""
    if os.read(sys.stdin.fileno(), 1):
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

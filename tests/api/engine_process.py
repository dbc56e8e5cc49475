"""The processes of a running server, for tests that do them harm."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

LISTENS = "0A"
"""State of a socket in /proc/net/tcp."""


def children(pid: int) -> Iterator[int]:
    """The processes that a process has started and that still run."""
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        yield from map(int, tasks.read_text().split())


def engine_pid(server_pid: int) -> int | None:
    """The engine of a server, None while there is none."""
    for pid in children(server_pid):
        if "engine" in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
            return pid
    return None


def api_pids(server_pid: int) -> set[int]:
    """The API processes of a server that has several."""
    return {
        pid
        for pid in children(server_pid)
        if "api.processes.child" in Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    }


def listens(pid: int, port: int) -> bool:
    """Whether a process listens on a port itself."""
    sockets = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if int(words[1][-4:], 16) == port and words[3] == LISTENS:
            sockets.add(f"socket:[{words[9]}]")
    return any(os.readlink(link) in sockets for link in Path(f"/proc/{pid}/fd").iterdir())

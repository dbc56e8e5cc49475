"""The engine behind a running server, for tests that do it harm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


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

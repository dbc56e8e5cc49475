"""What a server process has used, as it says itself, and what its clients have to know of it."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import msgspec

MODEL = "benchmark"
IDLE = 1
"""Priority of a request that is never answered."""


class Usage(msgspec.Struct, frozen=True):
    """What a server process has used so far."""

    processor_s: float
    resident_bytes: int


def usage() -> Usage:
    """Returns what this process has used (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Usage(time.process_time(), pages * os.sysconf("SC_PAGE_SIZE"))


def raise_file_limit() -> None:
    """Lets this process open as many sockets as it may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

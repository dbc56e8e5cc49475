"""What is said on stderr beside the log; on a full disk it is lost, and the server goes on."""

from __future__ import annotations

import contextlib
import os
import sys


def tell(text: str) -> None:
    """Writes a line, if it can be written."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def let_go() -> None:
    """Gives up what could not be written; the interpreter would end with status 120 over it."""
    try:
        sys.stderr.flush()
    except OSError:
        sys.stderr = open(os.devnull, "w")

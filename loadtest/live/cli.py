"""The entry of the load process: from here on its standard library is gevent's."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec


def main(arguments: Sequence[str]) -> int:
    """Runs `winnow load`; returns its exit status.

    Patches the standard library, before anything of it that waits has been imported: only a process
    that does nothing else may call this. To be shown the options, any process may.
    """
    if find_spec("locust") is None:
        print("winnow load: needs locust; `pip install 'winnow[load]'` brings it", file=sys.stderr)
        return 1
    if not {"-h", "--help"}.isdisjoint(arguments):
        from loadtest.live.options import parser

        parser().parse_args(arguments)
    from gevent import monkey

    monkey.patch_all()
    from loadtest.live.command import run

    return run(arguments)

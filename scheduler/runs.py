"""Runs: consecutive pages of a chain that are held, used and kept alike.

The pages that have an identity form a prefix tree: a page can be reached only through the page
before it. Most of that tree is chains that nothing branches from, so it is kept in runs, each from
one branch to the next, and what concerns a whole prefix is done once per run, not once per page. A
run is split where a prefix ends that somebody takes, or where its pages part in class.
"""

from __future__ import annotations

from itertools import chain
from typing import NamedTuple


class Run:
    """One run; its pages are those at `start` and the following places of their chain.

    Who holds a run holds all those before it, so a live run follows live ones.
    """

    __slots__ = (
        "before",
        "followers",
        "keys",
        "kind",
        "next",
        "pages",
        "previous",
        "references",
        "start",
        "used",
        "used_s",
    )

    def __init__(self, before: Run | None, start: int) -> None:
        self.before = before
        """The run that ends where this one starts; None at the root."""
        self.start = start
        self.pages: list[int] = []
        self.keys: list[bytes] = []
        """Identities of the pages (scheduler.prefix)."""
        self.followers = 0
        """Runs that start where this one ends."""
        self.references = 1
        """Sequences that hold it; 0: it is idle."""
        self.kind = 0
        """While idle: its class, as a place in EVICTION_ORDER."""
        self.used = 0
        """While idle: when it was used last, in pages used so far (scheduler.eviction)."""
        self.used_s = 0.0
        """While idle: since when, or since when in this class."""
        self.previous: Run = UNLISTED
        """Its neighbours in the eviction grid; UNLISTED: it is not listed there."""
        self.next: Run = UNLISTED

    @property
    def end(self) -> int:
        """The place after its last page."""
        return self.start + len(self.pages)


UNLISTED = Run.__new__(Run)
"""Stands for no neighbour, so that `previous` and `next` need not be asked for None."""


class Prefix(NamedTuple):
    """The leading pages of a chain that were found: those before `run`, and of it up to `end`."""

    run: Run | None
    """None: nothing was found."""
    end: int

    def pages(self) -> list[int]:
        """Returns their ids, in order."""
        run = self.run
        if run is None:
            return []
        parts = [run.pages[: self.end - run.start]]
        while (run := run.before) is not None:
            parts.append(run.pages)
        return parts[0] if len(parts) == 1 else [*chain.from_iterable(reversed(parts))]


NOTHING_FOUND = Prefix(None, 0)

"""Pre-warming: the form that the next user message will need, computed before it comes.

A turn in thinking mode that ended with an answer is rendered anew, without its reasoning, once the
user writes again. That form is known at once; it is prefilled in steps that nothing else needs, one
turn at a time, oldest answer first, and given up the moment a real request waits or needs the
pages. What was computed by then stays in the cache, and the rest is taken up again later.

It pays as long as it displaces what nobody comes back for. Where pages are so few that those of
other conversations would go before their users have had time to write, it is left alone.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from scheduler.pages import PagePool
from scheduler.prefix import prefix_keys, shared_pages
from scheduler.request import Sampling, Sequence

NOTHING = Sampling(max_tokens=0)
"""A pre-warmed sequence samples no token."""
REMEMBERED = 16
"""Times the limit: computed forms whose first hit is still to be counted."""


class _Form(NamedTuple):
    """Tokens that a next turn will start with; full pages only."""

    name: str
    root_key: bytes
    token_ids: list[int]
    keys: list[bytes]
    """Identities of its pages; computed when it is first started."""


class PreWarmer:
    """Dropped forms that wait for an idle step, and the one in work."""

    def __init__(
        self,
        pool: PagePool,
        *,
        page_tokens: int,
        longest_tokens: int,
        limit: int,
        unused_s: float,
    ) -> None:
        self.pool, self.page_tokens, self.limit = pool, page_tokens, limit
        self.longest_tokens, self.unused_s = longest_tokens, unused_s
        self.active: Sequence | None = None
        self.computed_tokens = 0
        """In all, for metrics."""
        self.hit_tokens = 0
        """Those of them that a prompt has found; each counts once."""
        self._pending: deque[_Form] = deque()
        self._active_form: _Form | None = None
        self._active_from_pages = 0
        """Leading pages of the active form that were in the cache when it began."""
        self._warm: dict[bytes, tuple[int, list[bytes]]] = {}
        """Identity of the first page that a form computed -> its place, and all identities up to
        the last page it computed. Until a prompt finds it."""

    def __len__(self) -> int:
        return len(self._pending) + (self.active is not None)

    def add(self, name: str, root_key: bytes, token_ids: list[int]) -> None:
        """Takes a form that will be needed; beyond the limit the oldest one is forgotten.

        Tokens beyond the last full page, or beyond what a prompt may have, are left out.
        """
        size = self.page_tokens
        tokens = min(len(token_ids), self.longest_tokens) // size * size
        if tokens and self.limit:
            self._pending.append(_Form(name, root_key, token_ids[:tokens], []))
            if len(self._pending) > self.limit:
                self._pending.popleft()

    def start(self, arrival: int) -> Sequence | None:
        """Returns the oldest form that is not cached, now active and with all its pages; None when
        there is none. A form that would displace awaited pages, or others in recent use, is
        forgotten.
        """
        pool, size = self.pool, self.page_tokens
        while self._pending:
            form = self._pending.popleft()
            if not form.keys:
                form.keys.extend(prefix_keys(form.root_key, form.token_ids, size))
            keys = list(form.keys)
            found = pool.match(keys)
            missing = len(keys) - found.end
            spare = pool.available_pages - pool.idle_of("awaited")
            if not missing or missing + pool.count_idle(found) > spare:
                continue
            if missing > pool.free_pages and pool.unused_s("stable") < self.unused_s:
                continue
            sequence = Sequence(
                f"pre-warm {form.name}",
                0,
                form.token_ids,
                NOTHING,
                root_key=form.root_key,
                arrival=arrival,
                keys=keys,
            )
            sequence.run = pool.hold(found)
            sequence.pages = found.pages() + pool.allocate(missing)
            sequence.computed_tokens = found.end * size
            sequence.published_pages = self._active_from_pages = found.end
            self.active, self._active_form = sequence, form
            return sequence
        return None

    def finish(self) -> None:
        """The active form is computed."""
        self._remember()
        self.active = self._active_form = None

    def put_back(self) -> None:
        """The active form is given up for now; it is the first to be taken up again."""
        assert self._active_form is not None
        self._remember()
        self._pending.appendleft(self._active_form)
        self.active = self._active_form = None

    def found(self, keys: list[bytes], pages: int) -> None:
        """Counts what a prompt with these identities, whose first `pages` it found, owes to us."""
        if not self._warm or self._warm.keys().isdisjoint(keys[:pages]):
            return
        for key in keys[:pages]:
            if (warm := self._warm.pop(key, None)) is not None:
                place, computed = warm
                shared = min(shared_pages(computed, keys), pages)
                self.hit_tokens += (shared - place) * self.page_tokens

    def _remember(self) -> None:
        """Notes which pages of the active form are there now and were not when it began."""
        sequence, first = self.active, self._active_from_pages
        if sequence is not None and sequence.published_pages > first:
            self._warm[sequence.keys[first]] = first, sequence.keys[: sequence.published_pages]
            if len(self._warm) > REMEMBERED * self.limit:
                del self._warm[next(iter(self._warm))]

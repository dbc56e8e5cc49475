"""What steps that served a request computed: tells a first computation from one made again.

It knows nothing of pages and classes, so that two policies are counted by the same measure: a token
in its place, after everything before it, is computed for the first time once. What is pre-warmed is
not in it: that is counted beside it.
"""

from __future__ import annotations

from collections.abc import Iterable

from loadtest.tokens import Run


class Computed:
    """Texts computed so far, as a tree of runs with the longest count computed of each."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[str | int, int, int], int] = {}
        """(node before or tenant, its count, token id) -> node."""
        self._longest: list[int] = []
        """By node."""

    def known_tokens(self, tenant: str, runs: Iterable[Run]) -> int:
        """Returns how many leading tokens of a tenant's text were computed before."""
        node: str | int = tenant
        before = known = 0
        for token, count in runs:
            place = self._nodes.get((node, before, token))
            if place is None:
                break
            computed = min(count, self._longest[place])
            known += computed
            if computed < count:
                break
            node, before = place, count
        return known

    def add(self, tenant: str, runs: Iterable[Run], tokens: int) -> None:
        """Notes that the first `tokens` tokens of a tenant's text are computed."""
        node: str | int = tenant
        before, left = 0, tokens
        for token, count in runs:
            if left <= 0:
                return
            key = (node, before, token)
            place = self._nodes.get(key)
            if place is None:
                place = self._nodes[key] = len(self._longest)
                self._longest.append(0)
            self._longest[place] = max(self._longest[place], min(count, left))
            left -= count
            node, before = place, count

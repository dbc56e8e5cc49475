"""Texts nobody wrote, as token ids that share prefixes exactly where the real ones would.

A text is a sequence of runs, (token id, count): every piece that can be told from another has an id
of its own, repeated to the piece's length. The scheduler sees ordinary token ids; a page's identity
chains everything before it, so the pages of one run differ from each other as real ones do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, count, repeat

Run = tuple[int, int]
"""(token id, how often)."""

OPEN_THINKING = 0
"""Stands after the assistant's marker where reasoning follows."""
NO_THINKING = 1
"""Stands there once the reasoning is dropped."""
FIRST_FRESH = 2


class TokenIds:
    """Hands out token ids that no other piece of text has."""

    def __init__(self) -> None:
        self._next = count(FIRST_FRESH)

    def fresh(self) -> int:
        """Returns an id never returned before."""
        return next(self._next)


def token_ids(runs: Iterable[Run]) -> list[int]:
    """Returns the text's token ids, one by one."""
    return list(chain.from_iterable(repeat(token, count) for token, count in runs))


def text_tokens(runs: Sequence[Run]) -> int:
    """Returns the length of the text in tokens."""
    return sum(count for _, count in runs)


def cut(runs: Iterable[Run], tokens: int) -> list[Run]:
    """Returns the first `tokens` tokens of a text."""
    kept: list[Run] = []
    for token, length in runs:
        if tokens <= 0:
            break
        kept.append((token, min(length, tokens)))
        tokens -= length
    return kept

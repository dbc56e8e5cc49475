"""Finding strings in text that arrives in pieces."""

import re


class Scanner:
    """Searches for a fixed set of strings, holding back what may yet become one of them."""

    def __init__(self, *terminals: str) -> None:
        self._terminals = tuple(sorted(terminals, key=len, reverse=True))
        self._longest = max(map(len, terminals), default=0)
        self._first_characters = frozenset(terminal[0] for terminal in terminals)
        if terminals:
            first = re.escape("".join(self._first_characters))
            self._any_first = re.compile(f"[{first}]").search

    def passes(self, text: str) -> bool:
        """Whether no terminal can begin in `text`: most text has no such character."""
        return not self._terminals or self._any_first(text) is None

    def scan(self, text: str, start: int = 0) -> tuple[int, str | None]:
        """Returns ``(border, terminal)``: text before ``border`` is settled, whatever comes next.

        ``terminal`` is the string that is complete first at or after ``start``, the longest of
        those complete together, and stands at ``border``. It is None when there is none: then the
        text from ``border`` on is the longest suffix that some terminal may still complete.
        """
        if not self._terminals or self._any_first(text, start) is None:
            return len(text), None
        # One that begins later may be complete earlier: text that arrives in pieces would stop
        # there, so whole text must too.
        found = [
            (position + len(terminal), position, terminal)
            for terminal in self._terminals
            if (position := text.find(terminal, start)) >= 0
        ]
        if found:
            _, border, terminal = min(found)
            return border, terminal
        for border in range(max(start, len(text) - self._longest + 1), len(text)):
            if text[border] in self._first_characters:
                suffix = text[border:]
                if any(terminal.startswith(suffix) for terminal in self._terminals):
                    return border, None
        return len(text), None

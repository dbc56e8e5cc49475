"""Whose requests may pass whose: what a client may say of its own priority."""

from __future__ import annotations

from typing import NamedTuple

from api.errors import invalid

LOWEST, HIGHEST = -(2**31), 2**31 - 1


class PriorityRule(NamedTuple):
    """The priority of one sender's requests; lower numbers run first."""

    own: int = 0
    """Of requests that name none."""
    free: bool = True
    """Requests may name any; otherwise none that runs before their sender's own."""

    def of(self, asked: int | None) -> int:
        """Returns the priority that a request runs at. Raises ApiError(400) for one not allowed.

        Whoever passes all others passes fairness between keys, too, so that is for the operator to
        allow. To wait longer than one must is nobody's loss.
        """
        if asked is None:
            return self.own
        if not self.free and asked < self.own:
            raise invalid(
                f"priority is {asked}; this sender's requests run at {self.own} or a larger number "
                "(later).",
                "priority",
                "priority_not_allowed",
            )
        return asked


ANY_PRIORITY = PriorityRule()

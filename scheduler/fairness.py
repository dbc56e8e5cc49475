"""Fairness between tenants: who was served least comes next.

Each tenant has a virtual counter of the tokens it was served, prompt tokens that had to be computed
counting once and generated ones OUTPUT_WEIGHT times. Of tenants that wait, the one with the lowest
counter goes first; so over any time in which two tenants both wait they are served alike, however
many requests one of them has queued. A tenant that comes back after a pause starts at the counter
of those who are served now: time in which it asked for nothing is not saved up.

Source: Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, algorithm 2.
"""

from __future__ import annotations

OUTPUT_WEIGHT = 2
FORGET_ABOVE = 4096
"""Counters kept before those of the tenants served least are dropped."""


class ServiceCounters:
    """Tokens served by tenant, in virtual units that only ever grow."""

    def __init__(self) -> None:
        self._served: dict[str, int] = {}
        self._floor = 0
        """Counter of the tenant last chosen: the lowest of those that waited then."""

    def served(self, tenant: str) -> int:
        """Returns the tenant's counter, at least that of the tenant last chosen when it came."""
        return self._served.get(tenant, self._floor)

    def arrive(self, tenant: str) -> None:
        """Says that a tenant without waiting requests has one now."""
        served = self._served
        if served.get(tenant, -1) < self._floor:
            served[tenant] = self._floor
        if len(served) > FORGET_ABOVE:
            # A tenant forgotten starts at the floor again, so those go who stand closest to it.
            kept = sorted(served, key=served.__getitem__)[FORGET_ABOVE // 2 :]
            self._served = {tenant: served[tenant] for tenant in kept}

    def choose(self, tenant: str) -> None:
        """Says that this tenant was the one served least and its request starts."""
        self._floor = max(self._floor, self._served.get(tenant, 0))

    def charge(self, tenant: str, *, prompt_tokens: int = 0, output_tokens: int = 0) -> None:
        """Counts tokens computed for a tenant."""
        served = self._served.get(tenant, self._floor)
        self._served[tenant] = served + prompt_tokens + OUTPUT_WEIGHT * output_tokens

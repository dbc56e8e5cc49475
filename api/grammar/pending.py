"""How many of one tenant's grammars may be on their way at once.

Grammars are made and compiled one after another, on few threads. Whoever sends many slow ones waits
for those of its own; the others' go between.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from api.errors import ApiError

AT_ONCE = 8
"""Of one tenant, between their making here and the engine's word on them."""
MOST_PENDING = 256
"""Of one tenant, those that wait for their turn included; a request of 128 prompts has 128."""
FULL_RETRY_S = 1.0


class _Line:
    def __init__(self) -> None:
        self.pending = 0
        self.places = asyncio.Semaphore(AT_ONCE)


class PendingGrammars:
    """The lines of all tenants; one event loop's."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}

    @contextlib.asynccontextmanager
    async def place(self, tenant: str) -> AsyncIterator[None]:
        """Holds a place for one grammar, once it is its turn. Raises ApiError(429) at the limit."""
        line = self._lines.setdefault(tenant, _Line())
        if line.pending >= MOST_PENDING:
            raise ApiError(
                429,
                f"{line.pending} requests with a form for their answer are waiting to be taken; "
                f"the limit is {MOST_PENDING}.",
                code="too_many_grammars",
                retry_after=FULL_RETRY_S,
            )
        line.pending += 1
        try:
            async with line.places:
                yield
        finally:
            line.pending -= 1
            if not line.pending:
                del self._lines[tenant]

    def __len__(self) -> int:
        return sum(line.pending for line in self._lines.values())

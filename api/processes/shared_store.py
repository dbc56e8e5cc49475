"""A reasoning store that tells its siblings: a conversation may go on in any API process.

Each process holds the turns of all, within the same bounds. A process that was started later knows
what came since.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from api.conversation.reasoning_store import ReasoningStore, StoredTurn


class Kept(msgspec.Struct, frozen=True, tag=True):
    """A turn that one process has kept, for the others."""

    owner: str
    call_ids: list[str]
    turn: StoredTurn


class SharedStore(ReasoningStore):
    """Publishes what is put into it; `hear` takes what others have published."""

    def __init__(self, limit_bytes: int, age_s: float, publish: Callable[[Kept], None]) -> None:
        """publish: is called in the event loop that runs now."""
        super().__init__(limit_bytes, age_s)
        self._publish = publish
        self._loop = asyncio.get_running_loop()

    def put(self, owner: str, call_ids: Sequence[str], turn: StoredTurn) -> None:
        """Keeps the turn here, and soon in every process."""
        super().put(owner, call_ids, turn)
        # Any thread may come by here; only the loop's may write to a socket.
        self._loop.call_soon_threadsafe(self._publish, Kept(owner, list(call_ids), turn))

    def hear(self, kept: Kept) -> None:
        """Keeps a turn that another process has published."""
        super().put(kept.owner, kept.call_ids, kept.turn)

"""api.processes.shared_store: what one process keeps, all can restore."""

from __future__ import annotations

import asyncio

import msgspec

from api.chat.messages import Written
from api.conversation.reasoning_store import StoredTurn, digest_of_rest, digest_of_text
from api.processes.channel import Said
from api.processes.shared_store import Kept, SharedStore

TURN = StoredTurn(
    Written((5, 6, 7), (8, 1)), digest_of_text("so"), digest_of_rest("", []), reasoning_tokens=3
)


def test_a_turn_is_found_in_every_process() -> None:
    async def scenario() -> None:
        told: asyncio.Queue[Kept] = asyncio.Queue()
        first = SharedStore(2**20, 60.0, told.put_nowait)
        second = SharedStore(2**20, 60.0, told.put_nowait)
        # As from a thread that encodes a long turn.
        await asyncio.to_thread(first.put, "owner", ["a", "b"], TURN)
        sent = msgspec.json.encode(await told.get())
        heard = msgspec.json.decode(sent, type=Said)
        assert isinstance(heard, Kept)
        assert second.get("owner", ["a", "b"]) is None
        second.hear(heard)
        assert second.get("owner", ["a", "b"]) == first.get("owner", ["a", "b"]) == TURN
        assert second.get("another", ["a", "b"]) is None
        assert told.empty(), "what was heard is not told again"

    asyncio.run(scenario())

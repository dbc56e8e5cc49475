"""What the parent and an API process say to each other: one JSON object a line, on a socket pair.

parent  Role ->              child
        <- Counted, each second; Serving, with each engine that it serves
        <- Scrape
        Exposed ->
        <- Kept, which the others are sent
"""

from __future__ import annotations

import asyncio

import msgspec

from api.config import ChatConfig, ServerConfig
from api.metrics.sums import Counted
from api.processes.shared_store import Kept
from engine.client import EngineConfig

LINE_LIMIT_BYTES = 64 * 2**20


class Role(msgspec.Struct, frozen=True, tag=True):
    """All that an API process needs to know; comes first."""

    engine: EngineConfig
    server: ServerConfig
    chat: ChatConfig
    engine_socket: str
    """Path by which the engine lets others in."""


class Serving(msgspec.Struct, frozen=True, tag=True):
    """Requests are answered."""


class Scrape(msgspec.Struct, frozen=True, tag=True):
    """Somebody asks for the metrics of the whole server."""


class Exposed(msgspec.Struct, frozen=True, tag=True):
    """The answer to one Scrape, in order."""

    text: str


Said = Role | Serving | Scrape | Exposed | Counted | Kept
_DECODER = msgspec.json.Decoder(Said)
_ENCODER = msgspec.json.Encoder()


class Channel:
    """One end of it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def send(self, message: Said) -> None:
        """Never waits; who is gone does not hear it."""
        if not self._writer.is_closing():
            self._writer.write(_ENCODER.encode(message) + b"\n")

    async def receive(self) -> Said | None:
        """Returns the next message, None when the other side is gone."""
        try:
            line = await self._reader.readuntil(b"\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return _DECODER.decode(line)

    def close(self) -> None:
        self._writer.close()

"""Frames on the local socket: a 4-byte little-endian length, then one MessagePack message."""

from __future__ import annotations

import socket

HEADER_BYTES = 4
FRAME_LIMIT_BYTES = 1 << 30


def frame(payload: bytes) -> bytes:
    """Returns the payload with its length in front."""
    return len(payload).to_bytes(HEADER_BYTES, "little") + payload


def payload_bytes(header: bytes) -> int:
    """Returns the length a header announces; raises ValueError above the limit."""
    size = int.from_bytes(header, "little")
    if size > FRAME_LIMIT_BYTES:
        raise ValueError(f"a frame announces {size} bytes; the limit is {FRAME_LIMIT_BYTES}")
    return size


def read_frame(connection: socket.socket) -> bytes | None:
    """Returns the next payload, None when the other side has closed; blocks."""
    header = _read_exactly(connection, HEADER_BYTES)
    return None if header is None else _read_exactly(connection, payload_bytes(header))


def _read_exactly(connection: socket.socket, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(min(count - len(parts), 1 << 20))
        if not part:
            return None
        parts += part
    return bytes(parts)

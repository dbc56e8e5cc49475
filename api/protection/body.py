"""Reading a request body that has a limit."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from api.errors import ApiError

DRAIN_LIMIT_BYTES = 256 * 2**20
DRAIN_LIMIT_S = 5.0


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """Returns the whole body. Raises ApiError(413) above the limit, stated or found while reading.

    Of a body that is too long nothing is kept, but the client is heard out (within limits): one
    that is busy sending would see a broken connection in place of the answer. A client that asks
    first (`expect: 100-continue`) is told at once.
    """
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > limit_bytes:
        if request.headers.get("expect", "").lower() != "100-continue":
            await _drain(request)
        raise _too_large(limit_bytes)
    chunks: list[bytes] = []
    size = 0
    stream = request.stream()
    async for chunk in stream:
        size += len(chunk)
        if size > limit_bytes:
            chunks.clear()
            await _drain(request)
            raise _too_large(limit_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(limit_bytes: int) -> ApiError:
    return ApiError(413, f"The body is longer than {limit_bytes} bytes.", code="request_too_large")


async def _drain(request: Request) -> None:
    """Reads and drops what the client still sends."""
    size = 0
    try:
        async with asyncio.timeout(DRAIN_LIMIT_S):
            while size < DRAIN_LIMIT_BYTES:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return

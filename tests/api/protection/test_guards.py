"""api.protection.guards: connections that never finish what they began, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from api.config import ServerConfig
from api.protection.guards import header_guard
from api.server import create_app
from tests.api.scripted_engine import Scripted, body

SHORT_S = 0.3
LONG_S = 60.0
"""A limit that is not to be reached: tests that wait for it fail by their own time limit."""
HEADER_BYTES = 8192
CHAT = "/v1/chat/completions"

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


class Served(uvicorn.Server):
    """Leaves signals to pytest."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


@contextlib.asynccontextmanager
async def serving(app: FastAPI, header_timeout_s: float) -> AsyncIterator[int]:
    """Yields the port of a server over the application."""
    config = uvicorn.Config(
        app,
        port=0,
        http=header_guard(header_timeout_s),
        h11_max_incomplete_event_size=HEADER_BYTES,
        log_config=None,
        lifespan="off",
    )
    server = Served(config)
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await running


def run(
    scripted: Scripted,
    use: Callable[[int], Coroutine[Any, Any, None]],
    *,
    header_timeout_s: float = LONG_S,
    body_timeout_s: float = LONG_S,
    **config: Any,
) -> None:
    async def all_of_it() -> None:
        settings = ServerConfig(body_timeout_s=body_timeout_s, **config)
        app = create_app(scripted.backend, settings)
        async with serving(app, header_timeout_s) as port, asyncio.timeout(LONG_S / 2):
            await use(port)

    asyncio.run(all_of_it())


async def is_served(port: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        assert (await client.get("/health")).status_code == 200
        answer = await client.post(CHAT, content=body(), timeout=LONG_S)
        assert answer.status_code == 200


async def connected(port: int, data: bytes) -> tuple[Reader, Writer]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    await writer.drain()
    return reader, writer


async def closed(writer: Writer) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


UNFINISHED_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-slow: "


@pytest.mark.parametrize("head", [b"", b"P", UNFINISHED_HEAD])
def test_a_head_that_never_ends_is_closed_while_others_are_served(
    scripted: Scripted, head: bytes
) -> None:
    async def use(port: int) -> None:
        reader, writer = await connected(port, head)
        await is_served(port)
        assert await reader.read() == b"", "closed without an answer"
        await closed(writer)

    run(scripted, use, header_timeout_s=SHORT_S)


def test_bytes_that_trickle_in_gain_no_time(scripted: Scripted) -> None:
    async def use(port: int) -> None:
        reader, writer = await connected(port, UNFINISHED_HEAD)

        async def trickle() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b"a")
                    await writer.drain()
                    await asyncio.sleep(SHORT_S / 10)

        trickling = asyncio.create_task(trickle())
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        trickling.cancel()
        await asyncio.gather(trickling, return_exceptions=True)
        await closed(writer)

    run(scripted, use, header_timeout_s=SHORT_S)


def test_the_second_request_of_a_connection_is_watched_too(scripted: Scripted) -> None:
    async def use(port: int) -> None:
        reader, writer = await connected(port, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        await reader.readexactly(len(b'{"status":"ok"}'))
        writer.write(UNFINISHED_HEAD)
        assert await reader.read() == b""
        await closed(writer)

    run(scripted, use, header_timeout_s=SHORT_S)


def test_an_answer_may_take_longer_than_a_head(scripted: Scripted) -> None:
    async def use(port: int) -> None:
        scripted.engine.gate.clear()
        asked = asyncio.create_task(is_served(port))
        while not scripted.engine.open:
            await asyncio.sleep(0)
        # A connection that only waits is closed by now, the one that is answered is not.
        reader, writer = await connected(port, b"")
        assert await reader.read() == b""
        await closed(writer)
        scripted.engine.gate.set()
        await asked

    run(scripted, use, header_timeout_s=SHORT_S)


def test_a_giant_head_is_refused(scripted: Scripted) -> None:
    async def use(port: int) -> None:
        reader, writer = await connected(port, UNFINISHED_HEAD + b"a" * 2 * HEADER_BYTES)
        with contextlib.suppress(ConnectionError):
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 400")
        await closed(writer)
        await is_served(port)

    run(scripted, use)


def test_many_headers_are_refused(scripted: Scripted) -> None:
    async def use(port: int) -> None:
        head = UNFINISHED_HEAD + b"\r\n" + b"".join(b"h%d: x\r\n" % n for n in range(2000))
        reader, writer = await connected(port, head + b"\r\n")
        with contextlib.suppress(ConnectionError):
            assert (await reader.read()).startswith(b"HTTP/1.1 400")
        await closed(writer)

    run(scripted, use)


@pytest.mark.parametrize(
    ("path", "sent"), [(CHAT, b""), (CHAT, b'{"model": '), ("/v1/messages", b"{")]
)
def test_a_body_that_never_comes_is_answered_408_and_closed(
    scripted: Scripted, sent: bytes, path: str
) -> None:
    async def use(port: int) -> None:
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n".encode()
        reader, writer = await connected(port, head + sent)
        await is_served(port)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"connection: close" in answer.lower()
        assert b"did not arrive" in answer
        await closed(writer)

    # Long enough for the requests beside it on a busy machine.
    run(scripted, use, body_timeout_s=2.0)


def test_a_body_that_trickles_in_gains_no_time(scripted: Scripted) -> None:
    async def use(port: int) -> None:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n"
        reader, writer = await connected(port, head.encode())

        async def trickle() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b" ")
                    await writer.drain()
                    await asyncio.sleep(SHORT_S / 10)

        trickling = asyncio.create_task(trickle())
        with contextlib.suppress(ConnectionError):
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 408")
        trickling.cancel()
        await asyncio.gather(trickling, return_exceptions=True)
        await closed(writer)

    run(scripted, use, body_timeout_s=SHORT_S)


def test_a_body_behind_an_early_answer_is_not_waited_for(
    scripted: Scripted, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key")

    async def use(port: int) -> None:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n".encode()
        reader, writer = await connected(port, head)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 401"), "and then closed"
        await closed(writer)

    run(scripted, use, header_timeout_s=SHORT_S, api_key_file=str(keys))

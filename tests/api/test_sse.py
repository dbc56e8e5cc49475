"""api.sse: events on the wire, errors after the headers, keep-alives, and clients that leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from api.errors import ApiError
from api.sse import DONE, KEEP_ALIVE, EventStream, StraightSend


class Word(msgspec.Struct):
    word: str


class Connection:
    """An ASGI connection whose client reads everything and leaves when told to."""

    def __init__(self) -> None:
        self.data = b""
        self.status = 0
        self.ended = False
        self.left = asyncio.Event()
        self.news = asyncio.Condition()

    async def receive(self) -> MutableMapping[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        async with self.news:
            if message["type"] == "http.response.start":
                self.status = message["status"]
            else:
                assert not self.ended
                self.data += message["body"]
                self.ended = not message["more_body"]
            self.news.notify_all()

    async def until(self, data: bytes) -> None:
        """Waits until `data` has arrived."""
        async with self.news:
            await self.news.wait_for(lambda: data in self.data)


class Work:
    """Counts whether the source was left."""

    def __init__(self) -> None:
        self.open = False

    @asynccontextmanager
    async def source(self) -> AsyncIterator[None]:
        self.open = True
        try:
            yield
        finally:
            self.open = False


Words = Callable[[], AsyncGenerator[Word, None]]


def run(scenario: Callable[[Connection, Work], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        work = Work()
        await asyncio.wait_for(scenario(Connection(), work), timeout=60)
        assert not work.open

    asyncio.run(main())


async def serve(
    connection: Connection, work: Work, words: Words, keep_alive_s: float = 60.0
) -> None:
    stream = EventStream(work.source(), words, keep_alive_s=keep_alive_s)
    await stream({"type": "http"}, connection.receive, connection.send)


def test_events_end_with_done() -> None:
    async def words() -> AsyncGenerator[Word, None]:
        yield Word("line\nfeed")

    async def scenario(connection: Connection, work: Work) -> None:
        await serve(connection, work, words)
        assert connection.status == 200
        assert connection.data == b'data: {"word":"line\\nfeed"}\n\n' + DONE
        assert connection.ended

    run(scenario)


def test_events_go_straight_and_their_start_does_not() -> None:
    async def words() -> AsyncGenerator[Word, None]:
        yield Word("a")
        yield Word("b")

    async def scenario(connection: Connection, work: Work) -> None:
        seen = []
        stream = EventStream(work.source(), words, keep_alive_s=60.0)

        async def application(scope: Any, receive: Any, send: Any) -> None:
            async def noting(message: MutableMapping[str, Any]) -> None:
                seen.append(message["type"])
                await send(message)

            await stream(scope, receive, noting)

        await StraightSend(application)({"type": "http"}, connection.receive, connection.send)
        assert connection.data == b'data: {"word":"a"}\n\ndata: {"word":"b"}\n\n' + DONE
        assert connection.ended
        assert seen == ["http.response.start"]

    run(scenario)


@pytest.mark.parametrize(
    ("error", "code"),
    [(ApiError(503, "gone", code="engine_dead"), b"engine_dead"), (ValueError(), b"null")],
)
def test_an_error_is_the_last_event(error: Exception, code: bytes) -> None:
    async def words() -> AsyncGenerator[Word, None]:
        yield Word("a")
        raise error

    async def scenario(connection: Connection, work: Work) -> None:
        await serve(connection, work, words)
        first, last = connection.data.decode().strip().split("\n\n")
        assert first == 'data: {"word":"a"}'
        assert last.startswith('data: {"error":{"message":')
        assert code in last.encode()
        assert connection.ended

    run(scenario)


def test_silence_is_filled_with_comments() -> None:
    async def scenario(connection: Connection, work: Work) -> None:
        go_on = asyncio.Event()

        async def words() -> AsyncGenerator[Word, None]:
            yield Word("a")
            await go_on.wait()
            yield Word("b")

        serving = asyncio.create_task(serve(connection, work, words, keep_alive_s=0.001))
        await connection.until(KEEP_ALIVE * 2)
        go_on.set()
        await serving
        without = connection.data.replace(KEEP_ALIVE, b"")
        assert without == b'data: {"word":"a"}\n\ndata: {"word":"b"}\n\n' + DONE

    run(scenario)


def test_a_client_that_leaves_frees_the_work_at_once() -> None:
    async def scenario(connection: Connection, work: Work) -> None:
        closed = asyncio.Event()

        async def words() -> AsyncGenerator[Word, None]:
            try:
                yield Word("a")
                await asyncio.Event().wait()
            finally:
                closed.set()

        serving = asyncio.create_task(serve(connection, work, words))
        await connection.until(b"a")
        assert work.open
        connection.left.set()
        await serving
        assert closed.is_set()
        assert DONE not in connection.data

    run(scenario)

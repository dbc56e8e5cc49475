"""Server-sent events: `data:` lines, comments while nothing happens, an end that frees all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import ApiError

logger = logging.getLogger("winnow.api")

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
STRAIGHT_SEND = "winnow.straight_send"
"""Where the scope of a request holds the server's own `send`."""

_encoder = msgspec.json.Encoder()


def event(message: msgspec.Struct) -> bytes:
    """Returns one server-sent event. JSON has no raw line feed, so one line holds it."""
    return b"data: " + _encoder.encode(message) + b"\n\n"


def named_event(message: msgspec.Struct) -> bytes:
    """Returns one server-sent event with the message's tag as its name; clients dispatch on it."""
    name = str(message.__struct_config__.tag).encode()
    return b"event: " + name + b"\n" + event(message)


class Wire(NamedTuple):
    """How a dialect writes its stream."""

    event: Callable[[msgspec.Struct], bytes]
    error: Callable[[ApiError], msgspec.Struct]
    """The last message of a stream that failed."""
    end: bytes
    """After the last message of one that did not."""


OPENAI = Wire(event, lambda error: error.body, DONE)


class StraightSend:
    """Pure ASGI, to be put outermost: lets a stream's events past whatever wraps `send` inside.

    All of that looks at the start of an answer only, and would be called for every token.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[STRAIGHT_SEND] = send
        await self._app(scope, receive, send)


class EventStream(Response):
    """Streams the messages of `source`, then an end; an error in between becomes the last event.

    source: a context manager around the work; leaving it frees what the work holds, and it is left
    whenever the stream ends, also when the client goes away in the middle.
    messages: called inside it, yields what is sent.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        source: AbstractAsyncContextManager[object],
        messages: Callable[[], AsyncGenerator[msgspec.Struct, None]],
        headers: Mapping[str, str] | None = None,
        *,
        keep_alive_s: float,
        wire: Wire = OPENAI,
    ) -> None:
        # A proxy that buffers would hand out the answer in one piece.
        unbuffered = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(headers={**unbuffered, **(headers or {})})
        del self.headers["content-length"]
        self._source = source
        self._messages = messages
        self._keep_alive_s = keep_alive_s
        self._wire = wire
        self._last_sent_s = 0.0
        self._finished = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._source:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            straight = scope.get(STRAIGHT_SEND, send)
            async with asyncio.TaskGroup() as tasks:
                watch = tasks.create_task(disconnected(receive))
                beat = tasks.create_task(self._keep_alive(straight))
                write = tasks.create_task(self._write(straight))
                await asyncio.wait({watch, write}, return_when=asyncio.FIRST_COMPLETED)
                for task in (watch, beat, write):
                    task.cancel()

    async def _write(self, send: Send) -> None:
        wire, now_s = self._wire, asyncio.get_running_loop().time
        last = wire.end
        try:
            async with contextlib.aclosing(self._messages()) as messages:
                async for message in messages:
                    data = wire.event(message)
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                    self._last_sent_s = now_s()
        except ApiError as error:
            last = wire.event(wire.error(error))
        except Exception:
            logger.exception("a stream failed")
            failure = ApiError(500, "The server failed while it streamed.")
            last = wire.event(wire.error(failure))
        self._finished = True
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _keep_alive(self, send: Send) -> None:
        """Comments keep proxies and clients from giving up on a request that waits its turn."""
        loop = asyncio.get_running_loop()
        self._last_sent_s = loop.time()
        while not self._finished:
            silence_s = loop.time() - self._last_sent_s
            if silence_s >= self._keep_alive_s:
                await send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})
                self._last_sent_s = loop.time()
            else:
                await asyncio.sleep(self._keep_alive_s - silence_s)


async def disconnected(receive: Receive) -> None:
    """Returns when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass

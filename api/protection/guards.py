"""What a connection can cost: headers and bodies that never end are given up in time.

uvicorn has a limit for neither. Both guards work while others are served.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from api.errors import ApiError


class BodyLate(ApiError):
    """A 408, after which the connection is of no more use."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(
            408, f"The body did not arrive within {timeout_s:g} s.", code="body_timeout"
        )

    @property
    def headers(self) -> dict[str, str]:
        return {**super().headers, "connection": "close"}


class BodyGuard:
    """Pure ASGI: a body that takes too long is answered 408, and its connection closed."""

    def __init__(self, app: ASGIApp, body_timeout_s: float) -> None:
        self._app, self._body_timeout_s = app, body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        ends_s = asyncio.get_running_loop().time() + self._body_timeout_s
        reading = True

        async def timed_receive() -> Message:
            nonlocal reading
            if not reading:
                return await receive()
            try:
                async with asyncio.timeout_at(ends_s):
                    message = await receive()
            except TimeoutError:
                raise BodyLate(self._body_timeout_s) from None
            reading = message["type"] == "http.request" and message.get("more_body", False)
            return message

        await self._app(scope, timed_receive, send)


class HeaderGuard(H11Protocol):
    """uvicorn's protocol, which also closes connections whose headers do not arrive in time.

    The time runs from the connection's start, and from the first byte behind an answer. It runs,
    too, for the rest of a body that was answered before it had come. Connections that are merely
    idle are uvicorn's own affair.
    """

    header_timeout_s = 10.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        pending, _ = self.conn.trailing_data
        theirs, ours = self.conn.their_state, self.conn.our_state
        if theirs is h11.IDLE:
            is_owed = bool(pending) or self._header_timer is not None
        else:
            is_owed = theirs is h11.SEND_BODY and ours is h11.DONE
        if not is_owed:
            self._stop()
        elif self._header_timer is None:
            self._start()

    def _start(self) -> None:
        self._header_timer = self.loop.call_later(self.header_timeout_s, self.transport.close)

    def _stop(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


def header_guard(header_timeout_s: float) -> type[HeaderGuard]:
    """Returns the protocol with a limit of its own: uvicorn makes one object per connection."""
    return type("HeaderGuard", (HeaderGuard,), {"header_timeout_s": header_timeout_s})

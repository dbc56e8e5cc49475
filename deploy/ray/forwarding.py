"""One request on its way to a replica and its answer on the way back, whatever befalls the replica.

A request that no server has seen goes to another replica. One that a server has seen is answered
once: with what the server says, or with an error when the replica is lost. Nothing ends in silence.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deploy.ray.errors import Failure
from deploy.ray.messages import Broken, Head, Message, NotTaken, Routed

logger = logging.getLogger("winnow.ray")

REPLICA_HEADER = b"x-winnow-replica"
RETRY_AFTER_S = 2
PER_CONNECTION = frozenset(
    {
        b"connection",
        b"content-length",
        b"date",
        b"expect",
        b"host",
        b"keep-alive",
        b"proxy-connection",
        b"server",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Headers that each connection has of its own."""
REQUEST_ID = b"x-request-id"
"""Ray gives each request one, by which the server's log knows it, and tells the client; the server
would tell it a second time."""
EVENT_END = b"\n\n"
NO_ANSWER = "it ended without an answer"


class Call(Protocol):
    """A request at a replica; what it yields is what the replica says of it."""

    def __aiter__(self) -> AsyncIterator[Message]: ...

    def cancel(self) -> None:
        """Ends it; the replica's server aborts what it computes for it."""


class Patience(NamedTuple):
    """How long and how often is tried."""

    routing_s: float
    """Until a replica has the request; there may be none for a while, or none with room."""
    tries: int
    """Replicas that may say that their server has not seen it."""


def forwarded_headers(headers: list[tuple[bytes, bytes]]) -> tuple[tuple[bytes, bytes], ...]:
    """Returns the headers that belong to a message and not to its connection."""
    return tuple((name, value) for name, value in headers if name.lower() not in PER_CONNECTION)


async def forward(
    path: str,
    send: Callable[[tuple[str, ...]], Call],
    patience: Patience,
    only: str | None = None,
) -> Response:
    """Returns the answer to a request to `path`.

    send: gives the request to a replica, none of those named if there is another one. only: the
    replica that is meant, if one is. Raises Failure(503) when nobody takes the request or the
    replica is lost before it answers, Failure(404) when the one that is meant is not there.
    """
    refused: tuple[str, ...] = ()
    reason = "no replica has room for it"
    for _ in range(patience.tries):
        call = send(refused)
        streams = False
        try:
            messages = aiter(call)
            replica = await _routed(messages, patience.routing_s)
            if only not in (None, replica):
                raise Failure(404, "replica_not_found", f"There is no replica {only!r}.")
            match await _next(messages):
                case NotTaken(reason):
                    logger.warning("replica %s did not take a request: %s", replica, reason)
                    refused = (*refused, replica)
                    continue
                case Head(status, headers):
                    headers = (
                        *(each for each in forwarded_headers([*headers]) if each[0] != REQUEST_ID),
                        (REPLICA_HEADER, replica.encode()),
                    )
                    if streams := _streams(headers):
                        return Stream(path, status, headers, call, messages)
                    return await _whole(status, headers, messages)
                case Broken(reason):
                    raise _lost(reason)
                case None:
                    raise _lost(NO_ANSWER)
                case other:
                    raise TypeError(f"replica {replica} began its answer with {type(other)}")
        finally:
            if not streams:  # a stream ends its call itself
                call.cancel()
    raise Failure(503, "no_replica", f"No replica took the request: {reason}.", RETRY_AFTER_S)


class Stream(Response):
    """Passes a stream of events on, each event whole, as they come; ends the call when the client
    leaves, and tells the client when the replica is lost."""

    def __init__(
        self,
        path: str,
        status: int,
        headers: tuple[tuple[bytes, bytes], ...],
        call: Call,
        messages: AsyncIterator[Message],
    ) -> None:
        super().__init__(status_code=status)
        self.raw_headers = [*headers]
        self._path, self._call, self._messages = path, call, messages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            try:
                async for events in self._events():
                    await send({"type": "http.response.body", "body": events, "more_body": True})
            except Failure as failure:
                last = failure.event(self._path)
                await send({"type": "http.response.body", "body": last, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._call.cancel()

    async def _events(self) -> AsyncIterator[bytes]:
        """Yields whole events: what a lost replica began to say would spoil the error behind it.

        Raises Failure when there is no end.
        """
        begun = b""
        while (message := await _next(self._messages)) is not None:
            match message:
                case bytes():
                    whole, end, begun = (begun + message).rpartition(EVENT_END)
                    if end:
                        yield whole + end
                case Broken(reason):
                    raise _lost(reason)
                case other:
                    raise TypeError(f"a replica said {type(other)} in the middle of a stream")
        if begun:
            yield begun


async def _routed(messages: AsyncIterator[Message], patience_s: float) -> str:
    """Returns the replica that has the request; raises Failure when none gets it in time."""
    try:
        async with asyncio.timeout(patience_s):
            message = await _next(messages)
    except TimeoutError:
        text = f"No replica took the request within {patience_s:g} s."
        raise Failure(503, "no_replica", text, RETRY_AFTER_S) from None
    if message is None:
        raise _lost(NO_ANSWER)
    if not isinstance(message, Routed):
        raise TypeError(f"a replica said {type(message)} before it had the request")
    return message.replica


async def _whole(
    status: int, headers: tuple[tuple[bytes, bytes], ...], messages: AsyncIterator[Message]
) -> Response:
    """Returns an answer in one piece; raises Failure if the rest of it does not come."""
    body = bytearray()
    while (message := await _next(messages)) is not None:
        if isinstance(message, Broken):
            raise _lost(message.reason)
        if not isinstance(message, bytes):
            raise TypeError(f"a replica said {type(message)} in the middle of an answer")
        body += message
    response = Response(bytes(body), status)
    length = (b"content-length", str(len(body)).encode())
    response.raw_headers = [*headers, length]
    return response


async def _next(messages: AsyncIterator[Message]) -> Message | None:
    """Returns the next message, None when there is none. Raises Failure when the replica is lost:
    whatever Ray raises for it, the client is to know that there will be no answer."""
    try:
        return await anext(messages, None)
    except Failure:
        raise
    except Exception as error:
        logger.warning("a replica is lost: %s", error)
        raise _lost(type(error).__name__) from error


def _streams(headers: tuple[tuple[bytes, bytes], ...]) -> bool:
    """Whether the answer is a stream of events."""
    return any(
        name.lower() == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in headers
    )


def _lost(reason: str) -> Failure:
    text = f"The replica was lost before the answer ended ({reason})."
    return Failure(503, "replica_lost", text, RETRY_AFTER_S)

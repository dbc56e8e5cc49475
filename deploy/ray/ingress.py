"""The front door: takes HTTP requests whole and has a replica answer them.

Ray's own proxy hands a deployment the request before its body is read, so a router there could not
see whose conversation it is. The ingress reads the body and calls through a handle, whose router
can.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, NamedTuple
from urllib.parse import quote

from ray.exceptions import RayError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
)
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from deploy.ray import messages
from deploy.ray.conversation import blocks_of
from deploy.ray.errors import Failure
from deploy.ray.forwarding import RETRY_AFTER_S, Patience, forward

REPLICAS_PATH = "/replicas"
REPLICA_PARAMETER = "replica"
"""Of a query: the replica that is meant, for what each says of itself."""
PATH_CHARACTERS = "/:@!$&'()*+,;=~"


class HandleCall:
    """A call through Ray; what Ray refuses becomes an answer of ours."""

    def __init__(self, responses: Any) -> None:
        self._responses = responses

    async def __aiter__(self) -> AsyncIterator[messages.Message]:
        try:
            async for message in self._responses:
                yield message
        except BackPressureError:
            text = "Every replica is busy and the queue is full."
            raise Failure(503, "overloaded", text, RETRY_AFTER_S) from None
        except DeploymentUnavailableError as error:
            text = f"There are no replicas: {error}"
            raise Failure(503, "no_replica", text, RETRY_AFTER_S) from None

    def cancel(self) -> None:
        """Ends the call; over already, it stays as it is."""
        # One that no replica was found for has nothing to cancel, and says why once more.
        with contextlib.suppress(RayServeException, RayError):
            self._responses.cancel()


class Reading(NamedTuple):
    """How much of a body is read, and for how long."""

    limit_bytes: int
    limit_s: float


class Ingress:
    """A deployment that answers every method at every path."""

    def __init__(self, replicas: DeploymentHandle, patience: Patience, reading: Reading) -> None:
        self._replicas = replicas
        self._forward = replicas.options(stream=True).forward
        self._patience, self._reading = patience, reading

    async def __call__(self, request: HttpRequest) -> Response:
        """Returns the answer of a replica, or an error in the caller's dialect."""
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        try:
            if request.method == "GET" and path == REPLICAS_PATH:
                return await self._targets(request)
            return await self._answer(request, path)
        except Failure as failure:
            return failure.response(path)

    async def _answer(self, request: HttpRequest, path: str) -> Response:
        body = await self._read(request)
        target = quote(path, safe=PATH_CHARACTERS)
        if request.url.query:
            target += "?" + request.url.query
        asked = messages.Request(request.method, target, tuple(request.headers.raw), body)
        blocks = blocks_of(request.headers, body) if body else []
        only = request.query_params.get(REPLICA_PARAMETER)

        def send(avoid: tuple[str, ...]) -> HandleCall:
            return HandleCall(self._forward.remote(asked, messages.Wishes(blocks, avoid, only)))

        return await forward(path, send, self._patience, only)

    async def _targets(self, request: HttpRequest) -> Response:
        """Returns the replicas as Prometheus' HTTP discovery reads them: each is scraped here, by
        its name."""
        try:
            told = await self._replicas.broadcast("tell_name").results_async(return_exceptions=True)
        except DeploymentUnavailableError as error:
            raise Failure(503, "no_replica", f"{error}", RETRY_AFTER_S) from error
        names = sorted(name for name in told if isinstance(name, str))  # others are dying
        targets = [
            {
                "targets": [request.url.netloc],
                "labels": {"replica": name, f"__param_{REPLICA_PARAMETER}": name},
            }
            for name in names
        ]
        return JSONResponse(targets)

    async def _read(self, request: HttpRequest) -> bytes:
        """Returns the body. Raises Failure(413) above the limit, Failure(408) when it is late; what
        is too much is read and not kept."""
        body = bytearray()
        size_bytes = 0
        try:
            async with asyncio.timeout(self._reading.limit_s):
                async for chunk in request.stream():
                    size_bytes += len(chunk)
                    if size_bytes <= self._reading.limit_bytes:
                        body += chunk
        except TimeoutError:
            text = f"The body did not arrive within {self._reading.limit_s:g} s."
            raise Failure(408, "body_timeout", text) from None
        if size_bytes > self._reading.limit_bytes:
            text = f"The body is longer than {self._reading.limit_bytes} bytes."
            raise Failure(413, "request_too_large", text)
        return bytes(body)

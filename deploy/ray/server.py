"""`winnow serve` as a child of a replica: started, asked, and stopped with it.

A process of its own has the packages that Winnow is tested with, whatever Ray needs, and its drain,
aborts and errors are the server's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import httpx

from deploy.ray.forwarding import forwarded_headers
from deploy.ray.messages import Broken, Head, Message, NotTaken, Request

ROOT = Path(__file__).parents[2]
LEASH = Path(__file__).with_name("leash.py")
URL = re.compile(r" +url +(https?://\S+)/v1\s*$")
TOLD_LINES = 20
PROBE_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 10.0


class ServerFailed(RuntimeError):
    """The server did not start, or is not well."""


class WinnowServer:
    """One `winnow serve` on a free port of this machine."""

    def __init__(
        self, process: asyncio.subprocess.Process, url: str, reader: asyncio.Task[None]
    ) -> None:
        self._process, self._reader = process, reader
        # As many connections as the router lets requests in; an answer may take hours.
        timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
        self._client = httpx.AsyncClient(
            base_url=url, timeout=timeout, limits=httpx.Limits(), trust_env=False
        )

    @classmethod
    async def start(
        cls, command: Sequence[str], environment: dict[str, str], grace_s: float
    ) -> WinnowServer:
        """Returns when the server answers; its messages go to stderr.

        command: without address and port. grace_s: what it needs to stop. Raises ServerFailed with
        its last lines if it ends before.
        """
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(LEASH), str(grace_s)),
            *(*command, "--host", "127.0.0.1", "--port", "0"),
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=ROOT,
            start_new_session=True,
        )
        lines: deque[str] = deque(maxlen=TOLD_LINES)
        found = asyncio.get_running_loop().create_future()
        reader = asyncio.create_task(_relay(process, lines, found))
        try:
            url = await found
        except asyncio.CancelledError:
            process.terminate()
            raise
        if url is None:
            await reader
            last = "".join(lines)
            raise ServerFailed(f"winnow serve ended with {await process.wait()}:\n{last}")
        return cls(process, url, reader)

    async def check_health(self) -> None:
        """Raises ServerFailed unless the server lives and has, or will have, an engine."""
        if self._process.returncode is not None:
            raise ServerFailed(f"winnow serve ended with {self._process.returncode}")
        try:
            answer = await self._client.get("/health", timeout=PROBE_TIMEOUT_S)
        except httpx.TransportError as error:
            raise ServerFailed(f"/health: {error!r}") from error
        if answer.status_code != 200:
            raise ServerFailed(f"/health: {answer.status_code} {answer.text}")

    async def answer(self, request: Request) -> AsyncGenerator[Message, None]:
        """Yields what follows Routed. Closing it closes the connection: the server aborts."""
        try:
            ready = await self._client.get("/ready", timeout=PROBE_TIMEOUT_S)
        except httpx.TransportError as error:
            yield NotTaken(f"/ready: {error!r}")
            return
        if ready.status_code != 200 and request.method == "POST":
            yield NotTaken(f"/ready: {ready.status_code}")
            return
        sent = self._client.build_request(
            request.method,
            request.target,
            headers=[*forwarded_headers([*request.headers])],
            content=request.body,
        )
        try:
            response = await self._client.send(sent, stream=True)
        except httpx.ConnectError as error:
            yield NotTaken(repr(error))
            return
        except httpx.TransportError as error:
            yield Broken(repr(error))
            return
        async with contextlib.aclosing(response):
            yield Head(response.status_code, tuple(response.headers.raw))
            try:
                async for chunk in response.aiter_raw():
                    yield chunk
            except httpx.TransportError as error:
                yield Broken(repr(error))

    async def wait(self) -> int:
        """Returns its exit status when it has ended and its last message was passed on."""
        await self._reader
        return await self._process.wait()

    async def stop(self) -> None:
        """Has the server drain and stop, within grace_s; returns when it is gone."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"stop\n")
        self._process.stdin.close()
        await self.wait()
        await self._client.aclose()


async def _relay(
    process: asyncio.subprocess.Process, lines: deque[str], found: asyncio.Future[str | None]
) -> None:
    """Passes the server's messages on, and tells its address when it says it."""
    assert process.stderr is not None
    while True:
        try:
            raw = await process.stderr.readline()
        except ValueError:
            continue  # longer than the reader's limit, and dropped; what follows must be read
        if not raw:
            break
        line = raw.decode(errors="replace")
        lines.append(line)
        sys.stderr.write(line)
        if (match := URL.match(line)) and not found.done():
            found.set_result(match[1])
    if not found.done():
        found.set_result(None)

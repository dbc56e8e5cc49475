"""deploy.ray.server: the child of a replica, and what a replica says when it fails."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from collections.abc import Awaitable, Callable

import pytest

from deploy.ray.messages import Broken, Head, Message, NotTaken, Request
from deploy.ray.server import ServerFailed, WinnowServer, _relay

FAKE = """
import http.server, os, sys, threading

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    ready = True

    def do_GET(self):
        self.send_response(200 if Handler.ready or self.path != "/ready" else 503)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/stop-being-ready":
            Handler.ready = False
        if self.path == "/die":
            os._exit(9)
        self.send_response(200)
        self.send_header("x-seen", self.path + " " + self.headers["x-told"] + " " + body.decode())
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for piece in (b"one", b"two"):
            self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(piece), piece))
            if self.path == "/die-in-the-middle":
                os._exit(9)
        self.wfile.write(b"0\\r\\n\\r\\n")

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print("loading", file=sys.stderr)
print(f"  url     http://127.0.0.1:{server.server_port}/v1", file=sys.stderr, flush=True)
server.serve_forever()
"""
COMMAND = (sys.executable, "-c", FAKE)


def with_server(do: Callable[[WinnowServer], Awaitable[None]]) -> None:
    async def run() -> None:
        server = await WinnowServer.start(COMMAND, dict(os.environ), 60)
        try:
            await do(server)
        finally:
            await server.stop()

    asyncio.run(run())


async def said(server: WinnowServer, path: str) -> list[Message]:
    headers = ((b"X-Told", b"a"), (b"Host", b"elsewhere"))
    request = Request("POST", path, headers, b"body")
    return [message async for message in server.answer(request)]


def test_a_request_and_its_answer_pass_through() -> None:
    async def do(server: WinnowServer) -> None:
        await server.check_health()
        head, *pieces = await said(server, "/v1/x?y=%20z")
        assert isinstance(head, Head)
        assert head.status == 200
        assert dict(head.headers)[b"x-seen"] == b"/v1/x?y=%20z a body"
        assert b"".join(piece for piece in pieces if isinstance(piece, bytes)) == b"onetwo"

    with_server(do)


def test_a_server_that_is_not_ready_takes_no_request() -> None:
    async def do(server: WinnowServer) -> None:
        await said(server, "/stop-being-ready")
        assert await said(server, "/v1/x") == [NotTaken("/ready: 503")]

    with_server(do)


@pytest.mark.parametrize(("path", "heads"), [("/die", 0), ("/die-in-the-middle", 1)])
def test_a_server_that_dies_breaks_its_answer_and_takes_no_other(path: str, heads: int) -> None:
    async def do(server: WinnowServer) -> None:
        messages = await said(server, path)
        assert isinstance(messages[-1], Broken)
        assert sum(isinstance(message, Head) for message in messages) == heads
        await server.wait()
        (refused,) = await said(server, "/v1/x")
        assert isinstance(refused, NotTaken)
        with pytest.raises(ServerFailed, match="ended with 9"):
            await server.check_health()

    with_server(do)


def test_a_server_that_does_not_start_says_why() -> None:
    program = "import sys; sys.exit('winnow serve: there is no model')"

    async def run() -> None:
        await WinnowServer.start((sys.executable, "-c", program), dict(os.environ), 60)

    with pytest.raises(ServerFailed, match="ended with 1:\nwinnow serve: there is no model"):
        asyncio.run(run())


def test_a_line_of_any_length_does_not_end_the_messages() -> None:
    told = "import sys; sys.stderr.write('x' * 200_000 + '\\n  url     http://h:1/v1\\n')"

    async def relayed() -> str | None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", told, stderr=asyncio.subprocess.PIPE
        )
        found: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        await _relay(process, deque(), found)
        await process.wait()
        return await found

    assert asyncio.run(relayed()) == "http://h:1"

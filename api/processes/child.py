"""One of several API processes: `python -m api.processes.child --socket-fd N`.

It listens on the port that all of them share, has a connection of its own to the engine, and is a
server like any other, but that its metrics are shown by its parent, which adds up what all count.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import sys
from collections import deque
from functools import partial
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from api.backend import Backend
from api.checkpoint import open_checkpoint
from api.errors import ApiError
from api.listening import listen
from api.logs import set_up_logging
from api.metrics.exposition import CONTENT_TYPE
from api.metrics.metrics import Metrics
from api.metrics.sums import counted
from api.processes.channel import LINE_LIMIT_BYTES, Channel, Exposed, Role, Scrape, Serving
from api.processes.shared_store import Kept, SharedStore
from api.server import create_app
from api.serving import add_tracing, answer
from api.stderr import let_go
from api.stopping import StopSignals
from api.supervisor import EngineSupervisor, RestartLimit
from engine.client import EngineClient

COUNT_INTERVAL_S = 1.0


class Relay:
    """Shows the metrics of the whole server, whichever process is asked."""

    def __init__(self, channel: Channel, metrics: Metrics) -> None:
        self._channel, self._metrics = channel, metrics
        self._waiting: deque[asyncio.Future[str]] = deque()

    async def answer(self, request: Request) -> Response:
        """The endpoint."""
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self.report()
        self._channel.send(Scrape())
        return Response(await future, media_type=CONTENT_TYPE)

    def report(self) -> None:
        """Tells the parent what was counted."""
        self._metrics.process.note()
        self._channel.send(counted(self._metrics.values))

    def exposed(self, text: str) -> None:
        """The parent has answered."""
        if not (future := self._waiting.popleft()).done():
            future.set_result(text)

    def gone(self) -> None:
        """The parent never will."""
        for future in self._waiting:
            if not future.done():
                future.set_exception(ApiError(503, "The server is stopping.", code="stopping"))


async def run(connection: socket.socket) -> None:
    """Serves until the parent says so, or is gone."""
    reader, writer = await asyncio.open_unix_connection(sock=connection, limit=LINE_LIMIT_BYTES)
    channel = Channel(reader, writer)
    role = await channel.receive()
    if not isinstance(role, Role):
        return
    config = role.server
    set_up_logging(config.log_level, config.log_format)
    checkpoint = await asyncio.to_thread(open_checkpoint, role.engine, config, role.chat)
    backend = Backend(checkpoint.names)
    relay = Relay(channel, backend.metrics)
    backend.show_metrics = relay.answer
    chat = role.chat
    store = SharedStore(chat.reasoning_store_bytes, chat.reasoning_store_s, channel.send)
    app = create_app(backend, config)
    stop = StopSignals()

    async def put_to_work(engine: EngineClient) -> None:
        if config.usage_cost:
            backend.metrics.requests.costs = await asyncio.to_thread(
                checkpoint.costs, role.engine, engine.ready, config.gpu_price_usd_per_hour
            )
        service = checkpoint.service(engine, backend.metrics)
        service.conversations.store = store
        backend.answer_with(service)
        channel.send(Serving())

    async def hear() -> None:
        while (message := await channel.receive()) is not None:
            match message:
                case Exposed(text=text):
                    relay.exposed(text)
                case Kept():
                    store.hear(message)
                case _:
                    pass
        relay.gone()
        # Nobody is left to start an engine, and nobody to wait for.
        stop.ask()
        stop.ask()

    async def count() -> None:
        while True:
            relay.report()
            await asyncio.sleep(COUNT_INTERVAL_S)

    supervisor = EngineSupervisor(
        partial(EngineClient.connect, Path(role.engine_socket), role.engine.silence_limit_s),
        put_to_work,
        RestartLimit(None, config.engine_restart_window_s),  # the parent knows when to stop
        start_limit_s=None,
    )
    listener = listen(config.host, config.port, shared=True)
    tasks = [asyncio.create_task(hear()), asyncio.create_task(count())]
    async with contextlib.AsyncExitStack() as running:
        add_tracing(backend, config, running)
        await answer(backend, app, config, listener, supervisor, stop)
        relay.report()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    channel.close()


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m api.processes.child")
    parser.add_argument("--socket-fd", type=int, required=True)
    try:
        asyncio.run(run(socket.socket(fileno=parser.parse_args().socket_fd)))
    finally:
        let_go()
    return 0


if __name__ == "__main__":
    sys.exit(main())

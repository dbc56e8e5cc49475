"""Several API processes on one engine: who starts them, starts them again, adds up their counts.

The parent answers no request. It owns the engine and the port, listens to what the others count and
shows the metrics of all. A process that dies takes its own requests with it, nobody else's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Coroutine
from functools import partial
from pathlib import Path

import msgspec

from api.backend import Backend
from api.checkpoint import Checkpoint
from api.config import ServerConfig
from api.listening import hold_port
from api.metrics import names
from api.metrics.exposition import Exposition
from api.metrics.metrics import Metrics
from api.metrics.sums import Counted, Share
from api.processes.channel import LINE_LIMIT_BYTES, Channel, Exposed, Role, Scrape, Serving
from api.processes.shared_store import Kept
from api.server import create_app
from api.serving import serve_metrics, start_up_table, url_of
from api.stderr import tell
from api.stopping import PROCESS_EXIT_GRACE_S, StopSignals, answers_limit_s
from api.supervisor import Deaths, EngineSupervisor, RestartLimit
from engine.client import PACKAGES, EngineClient, EngineConfig

logger = logging.getLogger("winnow.api")

SILENCE_LIMIT_S = 60.0
"""A process reports what it counts each second; one that does not is stuck."""


class ProcessDead(Exception):
    """API processes die too often."""


class ApiProcess:
    """One of them, and those that take its place."""

    def __init__(
        self,
        role: Role,
        exposition: Exposition,
        metrics: Metrics,
        deaths: Deaths,
        siblings: list[ApiProcess],
    ) -> None:
        """siblings: all there are, this one among them."""
        self.serving = asyncio.Event()
        """It has answered requests."""
        self._role, self._exposition = role, exposition
        self._restarts = metrics.values.number(names.API_RESTARTS)
        self._share = Share(metrics.values)
        self._deaths, self._siblings = deaths, siblings
        self._channel: Channel | None = None
        self._told = False
        self._answers = False
        """The one that runs now has an engine, and handles its signals."""
        self._process: asyncio.subprocess.Process | None = None

    async def keep(self) -> None:
        """Runs it until it is told to stop. Raises ProcessDead with a death too many."""
        while not self._told:
            status = await self._run()
            if self._told:
                return
            why = f"an API process ended with status {status}"
            if not self._deaths.one_more():
                raise ProcessDead(f"{why} ({self._deaths})")
            logger.error("%s (%s): another is started", why, self._deaths)
            self._restarts.add()

    def tell(self, number: signal.Signals) -> None:
        """Sends it a signal; it is not started again after one that stops it.

        SIGHUP would end one that does not handle it yet; that one reads its files anew anyway.
        """
        if number == signal.SIGHUP and not self._answers:
            return
        self._told |= number in (signal.SIGTERM, signal.SIGKILL)
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def _run(self) -> int:
        ours, theirs = socket.socketpair()
        self._answers = False
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "api.processes.child",
                "--socket-fd",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": PACKAGES},
                start_new_session=True,  # a terminal's signals come through the parent
            )
        if self._told:
            self.tell(signal.SIGTERM)
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=LINE_LIMIT_BYTES)
        channel = Channel(reader, writer)
        channel.send(self._role)
        self._channel = channel
        try:
            await self._listen(channel)
        except TimeoutError:
            logger.error("an API process was silent for %g s", SILENCE_LIMIT_S)
            self._process.kill()
        finally:
            self._share.leave()
            channel.close()
        try:
            return await asyncio.wait_for(self._process.wait(), PROCESS_EXIT_GRACE_S)
        except TimeoutError:
            self._process.kill()
            return await self._process.wait()

    async def _listen(self, channel: Channel) -> None:
        while message := await asyncio.wait_for(channel.receive(), SILENCE_LIMIT_S):
            match message:
                case Counted():
                    self._share.take(message)
                case Scrape():
                    channel.send(Exposed((await self._exposition.text()).decode()))
                case Serving():
                    self._answers = True
                    self.serving.set()
                case Kept():
                    for sibling in self._siblings:
                        if sibling is not self and sibling._channel is not None:
                            sibling._channel.send(message)
                case _:
                    pass


async def serve_together(
    checkpoint: Checkpoint, engine_config: EngineConfig, config: ServerConfig
) -> None:
    """Serves with --api-server-count processes until SIGINT or SIGTERM.

    Raises ConfigError, CheckpointError or EngineDead as `serve` does, and ProcessDead.
    """
    create_app(Backend(checkpoint.names), config)  # what its processes would stumble on
    stop = StopSignals()
    metrics = Metrics(checkpoint.names[0], draining=stop.asked.is_set)
    exposition = Exposition(metrics, vllm=config.vllm_metrics, of_others=True)
    limit = RestartLimit(config.max_engine_restarts, config.engine_restart_window_s)
    async with contextlib.AsyncExitStack() as running:
        port = running.enter_context(hold_port(config.host, config.port))
        config = msgspec.structs.replace(
            config, port=port.getsockname()[1], served_model_name=checkpoint.names
        )
        folder = running.enter_context(tempfile.TemporaryDirectory(prefix="winnow-"))
        path = Path(folder) / "engine"
        door = running.enter_context(socket.socket(socket.AF_UNIX))
        door.bind(str(path))
        door.listen()
        if config.metrics_port is not None:
            await serve_metrics(exposition, config.host, config.metrics_port, running)

        works = asyncio.Event()

        async def put_to_work(engine: EngineClient) -> None:
            price = config.gpu_price_usd_per_hour
            costs = await asyncio.to_thread(checkpoint.costs, engine_config, engine.ready, price)
            target_s = engine_config.inter_token_target_s
            metrics.attach(engine, costs, inter_token_target_s=target_s)
            works.set()

        supervisor = EngineSupervisor(
            partial(EngineClient.start, engine_config, door),
            put_to_work,
            limit,
            start_limit_s=config.engine_start_limit_s,
        )
        local = msgspec.structs.replace(engine_config, model=str(checkpoint.folder), revision=None)
        role = Role(local, config, checkpoint.chat_config, str(path))
        deaths = Deaths(limit)
        processes: list[ApiProcess] = []
        for _ in range(config.api_server_count):
            processes.append(ApiProcess(role, exposition, metrics, deaths, processes))

        async def announce() -> None:
            for event in (works, *(process.serving for process in processes)):
                await event.wait()
            assert supervisor.engine is not None
            table = start_up_table(checkpoint.names, supervisor.engine.ready, url_of(config, port))
            tell(table)

        await _run(supervisor, processes, stop, config, announce=announce())


async def _run(
    supervisor: EngineSupervisor,
    processes: list[ApiProcess],
    stop: StopSignals,
    config: ServerConfig,
    announce: Coroutine[None, None, None],
) -> None:
    engines = asyncio.create_task(supervisor.run())
    kept = [asyncio.create_task(process.keep()) for process in processes]
    announcing = asyncio.create_task(announce)
    stopping = asyncio.create_task(stop.asked.wait())

    def tell_all(number: signal.Signals) -> None:
        for process in processes:
            process.tell(number)

    async def hurry() -> None:
        await stop.hurried.wait()
        tell_all(signal.SIGTERM)

    if config.api_key_file is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, tell_all, signal.SIGHUP)
    try:
        await asyncio.wait({engines, stopping, *kept}, return_when=asyncio.FIRST_COMPLETED)
        for task in (engines, *kept):
            if task.done():
                task.result()
    finally:
        announcing.cancel()
        tell_all(signal.SIGTERM)
        hurrying = asyncio.create_task(hurry())
        await asyncio.wait(kept, timeout=answers_limit_s(config))
        tell_all(signal.SIGKILL)
        hurrying.cancel()
        engines.cancel()
        stopping.cancel()
        await asyncio.gather(engines, stopping, *kept, return_exceptions=True)
        await supervisor.close()

"""A server from its first socket to its last byte: the port, the engine behind it, signals, drain.

The port answers from the start (503 from /ready), the model loads beside it. An engine that dies is
replaced; what the server counted and remembers stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Sequence
from functools import partial

from fastapi import FastAPI

from api.backend import Backend
from api.checkpoint import Checkpoint
from api.config import ServerConfig
from api.listening import api_server, listen, plain_server
from api.metrics.exposition import Exposition
from api.metrics.tracing import Tracing
from api.options import show_bytes
from api.server import create_app
from api.stderr import tell
from api.stopping import StopSignals
from api.supervisor import EngineSupervisor, RestartLimit
from engine.client import EngineClient, EngineConfig, set_heap_aside
from engine.messages import Ready


async def serve(checkpoint: Checkpoint, engine_config: EngineConfig, config: ServerConfig) -> None:
    """Serves until SIGINT or SIGTERM.

    Raises CheckpointError, ConfigError or EngineDead when there is nothing to serve, EngineDead
    also when engines die too often.
    """
    backend = Backend(checkpoint.names)
    app = create_app(backend, config)
    listener = listen(config.host, config.port)
    url = url_of(config, listener)

    async def put_to_work(engine: EngineClient) -> None:
        """All that holds for one engine is made anew: prices, limits, facts of the model."""
        price = config.gpu_price_usd_per_hour
        costs = await asyncio.to_thread(checkpoint.costs, engine_config, engine.ready, price)
        backend.metrics.attach(
            engine,
            costs,
            inter_token_target_s=engine_config.inter_token_target_s,
            usage_cost=config.usage_cost,
        )
        is_first = backend.service is None
        backend.answer_with(checkpoint.service(engine, backend.metrics))
        if is_first:
            tell(start_up_table(checkpoint.names, engine.ready, url))

    supervisor = EngineSupervisor(
        partial(EngineClient.start, engine_config),
        put_to_work,
        RestartLimit(config.max_engine_restarts, config.engine_restart_window_s),
        start_limit_s=config.engine_start_limit_s,
    )
    async with contextlib.AsyncExitStack() as running:
        if config.metrics_port is not None:
            exposition = Exposition(backend.metrics, vllm=config.vllm_metrics)
            await serve_metrics(exposition, config.host, config.metrics_port, running)
        add_tracing(backend, config, running)
        await answer(backend, app, config, listener, supervisor, StopSignals())


async def answer(
    backend: Backend,
    app: FastAPI,
    config: ServerConfig,
    listener: socket.socket,
    supervisor: EngineSupervisor,
    stop: StopSignals,
) -> None:
    """Answers requests with one engine after the other until it is asked to stop, then drains.

    Raises what ends the supervisor.
    """
    server = api_server(app, config)
    set_heap_aside()
    if (keys := getattr(app.state, "keys", None)) is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, keys.reload)

    async def hurry() -> None:
        # The second signal waits neither for load balancers nor for running answers.
        await stop.hurried.wait()
        server.force_exit = True

    http = asyncio.create_task(server.serve(sockets=[listener]))
    engines = asyncio.create_task(supervisor.run())
    stopping = asyncio.create_task(stop.asked.wait())
    hurrying = asyncio.create_task(hurry())
    backend.supervised = True
    try:
        await asyncio.wait({http, engines, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if engines.done():
            backend.supervised = False
            engines.result()
    finally:
        backend.draining = True
        if backend.alive and not http.done():
            # uvicorn closes its socket at once: balancers that have not yet asked /ready would
            # send requests into the void.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.hurried.wait(), config.drain_delay_s)
        server.should_exit = True
        engines.cancel()
        stopping.cancel()
        await asyncio.wait({http}, timeout=config.shutdown_grace_s)
        await asyncio.gather(engines, return_exceptions=True)
        # Whatever still runs ends with an error, and so the server does.
        await supervisor.close()
        await asyncio.gather(http, stopping, return_exceptions=True)
        hurrying.cancel()


def add_tracing(backend: Backend, config: ServerConfig, running: contextlib.AsyncExitStack) -> None:
    """Makes each request a span, where they are asked for; `running` ends that."""
    if config.otlp_traces_endpoint is not None:
        tracing = Tracing.to(config.otlp_traces_endpoint, backend.names[0])
        backend.metrics.requests.tracing = tracing
        running.push_async_callback(asyncio.to_thread, tracing.close)


async def serve_metrics(
    exposition: Exposition, host: str, port: int, running: contextlib.AsyncExitStack
) -> None:
    """Starts to serve the metrics on a port of their own; `running` ends that.

    Raises ConfigError when the port cannot be had.
    """
    listener = listen(host, port, "--metrics-port")
    server = plain_server(exposition.app())
    task = asyncio.create_task(server.serve(sockets=[listener]), name="metrics")

    async def end() -> None:
        server.should_exit = True
        await task

    running.push_async_callback(end)
    url = f"http://{host}:{listener.getsockname()[1]}"
    tell(f"  metrics {url}/metrics")


def url_of(config: ServerConfig, listener: socket.socket) -> str:
    """Returns where the server is found."""
    scheme = "http" if config.ssl_certfile is None else "https"
    return f"{scheme}://{config.host}:{listener.getsockname()[1]}"


def start_up_table(names: Sequence[str], ready: Ready, url: str) -> str:
    """Returns what is served and where, and where the memory goes."""
    rows = [
        ("model", f"{', '.join(names)} ({ready.model_type}, {ready.dtype} on {ready.device})"),
        ("window", f"{ready.max_model_len:,} tokens"),
        ("cache", f"{ready.total_pages:,} pages of {ready.page_tokens} tokens"),
        ("memory", " + ".join(f"{k} {show_bytes(v)}" for k, v in ready.memory.items())),
        ("url", f"{url}/v1"),
    ]
    return "\n".join(f"  {name:<7} {value}" for name, value in rows)

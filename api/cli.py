"""`winnow serve`: an engine, and the HTTP server in front of it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import socket
import ssl
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import uvicorn

from api.backend import Backend
from api.config import ChatConfig, ServerConfig
from api.logs import set_up_logging
from api.metrics.cost import Costs
from api.metrics.exposition import Exposition
from api.metrics.tracing import Tracing
from api.options import HelpFormatter, add_options, build, read_values, show_bytes
from api.profiles import choose_profile
from api.protection.guards import header_guard
from api.server import create_app
from api.service import ChatService, load_prompt_format
from cost_model.errors import CostError
from cost_model.shape import ModelShape
from engine.client import (
    CheckpointError,
    ConfigError,
    EngineClient,
    EngineConfig,
    EngineDead,
    resolve_model,
)
from engine.messages import Ready

UNREAD_GRACE_S = 10
BACKLOG = 2048
"""Connections that wait to be accepted."""

ENGINE_GROUPS = {
    "memory and batching": (
        "kv_cache_bytes",
        "gpu_memory_utilization",
        "max_num_seqs",
        "max_num_batched_tokens",
        "indexer_workspace_bytes",
    ),
    "latency and overload": (
        "inter_token_target_s",
        "prefill_floor_tokens",
        "max_queued_requests",
        "max_queued_tokens",
    ),
    "prefix cache": (
        "enable_prefix_caching",
        "awaited_s",
        "awaited_share",
        "cost_doubling_tokens",
        "max_pre_warms",
    ),
    "attention and numerics": (
        "attention",
        "batch_invariant",
        "device",
        "dtype",
        "kv_cache_dtype",
        "index_dtype",
        "threads",
        "enforce_eager",
        "silence_limit_s",
    ),
}
GROUPS = {
    "model": ("model", "revision", "served_model_name", "max_model_len"),
    "server": (
        "host",
        "port",
        "ssl_certfile",
        "ssl_keyfile",
        "cors_origins",
        "keep_alive_s",
        "drain_delay_s",
        "shutdown_grace_s",
        "log_level",
        "log_format",
    ),
    "metrics and cost": (
        "metrics_port",
        "vllm_metrics",
        "otlp_traces_endpoint",
        "profile_dir",
        "usage_cost",
        "gpu_price_usd_per_hour",
    ),
    "clients": (
        "api_key_file",
        "max_requests_per_key",
        "max_tokens_per_minute_per_key",
        "max_body_bytes",
        "max_header_bytes",
        "header_timeout_s",
        "body_timeout_s",
        "idle_connection_s",
    ),
    "conversations": (
        "model_profile",
        "max_reasoning_tokens",
        "missing_reasoning",
        "reasoning_store_bytes",
        "reasoning_store_s",
        "tool_output_markers",
        "summary_instruction",
        "summary_max_tokens",
        "lenient_tool_calls",
    ),
    **ENGINE_GROUPS,
}

EPILOG = """\
examples:
  winnow serve                                     the checkpoint in this repository, on port 8000
  winnow serve --model ./DeepSeek-V3.2 --port 80 --host 0.0.0.0 --api-key-file keys.txt
  winnow serve --max-model-len 8192 --kv-cache-bytes 2GiB --attention sparse
  winnow serve --config serve.toml                 max-model-len = 8192, one key per line
"""


def main(arguments: Sequence[str]) -> int:
    """Runs the server until it is told to stop; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="winnow serve",
        description="Serve a DeepSeek-V3.2 checkpoint behind an OpenAI-compatible API.",
        epilog=EPILOG,
        usage="winnow serve [options]",
        formatter_class=HelpFormatter,
    )
    structs = (EngineConfig, ServerConfig, ChatConfig)
    add_options(parser, structs, GROUPS)
    parsed = parser.parse_args(arguments)
    try:
        values = read_values(parsed, structs)
        server_config = build(ServerConfig, values)
        set_up_logging(server_config.log_level, server_config.log_format)
        chat_config = build(ChatConfig, values)
        return asyncio.run(serve(build(EngineConfig, values), server_config, chat_config))
    except (ConfigError, CheckpointError, EngineDead) as error:
        print(f"winnow serve: {error}", file=sys.stderr)
        return 1


async def serve(engine_config: EngineConfig, config: ServerConfig, chat_config: ChatConfig) -> int:
    """Serves until SIGINT or SIGTERM; returns the exit status.

    The port answers from the start (503 from /ready), the model loads beside it.
    Raises CheckpointError, ConfigError or EngineDead when there is nothing to serve.
    """
    folder = await asyncio.to_thread(resolve_model, engine_config.model, engine_config.revision)
    encoder, defaults = load_prompt_format(folder)
    check_certificate(config)
    names = config.served_model_name or (model_name(engine_config.model, folder),)
    if chat_config.model_profile == "auto":
        known_as = " ".join((engine_config.model, folder.resolve().name, *names))
        profile = choose_profile("auto", known_as).name
        chat_config = msgspec.structs.replace(chat_config, model_profile=profile)
    backend = Backend(names)
    app = create_app(backend, config)
    listener = listen(config.host, config.port)
    server = _Server(
        uvicorn.Config(
            app,
            http=header_guard(config.header_timeout_s),
            h11_max_incomplete_event_size=config.max_header_bytes,
            timeout_keep_alive=round(config.idle_connection_s),
            ssl_certfile=config.ssl_certfile,
            ssl_keyfile=config.ssl_keyfile,
            log_config=None,
            log_level=config.log_level,
            access_log=False,
            lifespan="off",
            server_header=False,
            # A client that does not even read the error its stream ends with.
            timeout_graceful_shutdown=round(config.shutdown_grace_s) + UNREAD_GRACE_S,
        )
    )
    metrics = serve_metrics(backend, config)
    if config.otlp_traces_endpoint is not None:
        tracing = Tracing.to(config.otlp_traces_endpoint, names[0])
        backend.metrics.requests.tracing = tracing
        metrics.push_async_callback(asyncio.to_thread, tracing.close)
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        # The second signal waits neither for load balancers nor for running answers.
        if stop.is_set():
            server.force_exit = True
            hurry.set()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    if (keys := getattr(app.state, "keys", None)) is not None:
        loop.add_signal_handler(signal.SIGHUP, keys.reload)
    http = asyncio.create_task(server.serve(sockets=[listener]))
    loading = asyncio.create_task(EngineClient.start(engine_config))
    stopping = asyncio.create_task(stop.wait())
    engine: EngineClient | None = None
    try:
        await asyncio.wait({http, loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            engine = loading.result()
            price = config.gpu_price_usd_per_hour
            costs = await asyncio.to_thread(costs_of, folder, engine_config, engine.ready, price)
            backend.metrics.attach(
                engine,
                costs,
                inter_token_target_s=engine_config.inter_token_target_s,
                usage_cost=config.usage_cost,
            )
            backend.service = ChatService(
                engine, encoder, names, defaults, chat_config, backend.metrics
            )
            scheme = "http" if config.ssl_certfile is None else "https"
            url = f"{scheme}://{config.host}:{listener.getsockname()[1]}"
            print(start_up_table(names, engine.ready, url), file=sys.stderr, flush=True)
            await asyncio.wait({http, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        backend.draining = True
        if engine is not None and not http.done():
            # uvicorn closes its socket at once: balancers that have not yet asked /ready would
            # send requests into the void.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(hurry.wait(), config.drain_delay_s)
        server.should_exit = True
        loading.cancel()
        stopping.cancel()
        await asyncio.wait({http}, timeout=config.shutdown_grace_s)
        if engine is not None:
            # Whatever still runs ends with an error, and so the server does.
            await engine.close()
        await metrics.aclose()
        await asyncio.gather(http, loading, stopping, return_exceptions=True)
    return 0


class _Server(uvicorn.Server):
    """Signals are handled by serve(): also while the model loads, and the engine ends last."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve_metrics(backend: Backend, config: ServerConfig) -> contextlib.AsyncExitStack:
    """Starts to serve the metrics on a port of their own, if they have one.

    Returns what ends it. Raises ConfigError when the port cannot be had.
    """
    running = contextlib.AsyncExitStack()
    if config.metrics_port is None:
        return running
    listener = listen(config.host, config.metrics_port, "--metrics-port")
    app = Exposition(backend.metrics, vllm=config.vllm_metrics).app()
    server = _Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
    task = asyncio.create_task(server.serve(sockets=[listener]), name="metrics")

    async def end() -> None:
        server.should_exit = True
        await task

    running.push_async_callback(end)
    url = f"http://{config.host}:{listener.getsockname()[1]}"
    print(f"  metrics {url}/metrics", file=sys.stderr, flush=True)
    return running


def costs_of(folder: Path, config: EngineConfig, ready: Ready, usd_per_hour: float | None) -> Costs:
    """Returns what the served model's tokens cost. Raises CheckpointError for a config.json that
    says too little."""
    try:
        shape = ModelShape.from_folder(folder)
    except CostError as error:
        raise CheckpointError(str(error)) from error
    if config.attention == "dense":
        shape = shape.without_indexer
    return Costs.of(shape, ready.machine, usd_per_hour, ready.max_model_len)


def check_certificate(config: ServerConfig) -> None:
    """Changes nothing; raises ConfigError for files that no HTTPS can be served with."""
    if config.ssl_certfile is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            config.ssl_certfile, config.ssl_keyfile
        )
    except OSError as error:  # what the ssl module raises is one of these, too
        files = " ".join(filter(None, (config.ssl_certfile, config.ssl_keyfile)))
        raise ConfigError(f"--ssl-certfile and --ssl-keyfile ({files}): {error}") from error


def listen(host: str, port: int, flag: str = "--port") -> socket.socket:
    """Returns a listening socket; raises ConfigError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"--host {host} {flag} {port} cannot be listened on: {error.strerror}"
        ) from error
    return listener


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


def model_name(model: str, folder: Path) -> str:
    """Returns the name a model is served under: a hub id as it is, else the folder's name."""
    is_hub_id = bool(model) and not Path(model).expanduser().is_dir()
    return model if is_hub_id else folder.resolve().name

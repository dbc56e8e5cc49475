"""`winnow serve`: an engine, and the HTTP server in front of it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import uvicorn

from api.backend import Backend
from api.config import ServerConfig
from api.options import HelpFormatter, add_options, build, read_values, show_bytes
from api.server import create_app
from api.service import ChatService, load_prompt_format
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
        "silence_limit_s",
    ),
}
GROUPS = {
    "model": ("model", "revision", "served_model_name", "max_model_len"),
    "server": (
        "host",
        "port",
        "api_key_file",
        "max_body_bytes",
        "keep_alive_s",
        "shutdown_grace_s",
        "log_level",
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
    structs = (EngineConfig, ServerConfig)
    add_options(parser, structs, GROUPS)
    parsed = parser.parse_args(arguments)
    try:
        values = read_values(parsed, structs)
        server_config = build(ServerConfig, values)
        set_up_logging(server_config.log_level)
        return asyncio.run(serve(build(EngineConfig, values), server_config))
    except (ConfigError, CheckpointError, EngineDead) as error:
        print(f"winnow serve: {error}", file=sys.stderr)
        return 1


async def serve(engine_config: EngineConfig, config: ServerConfig) -> int:
    """Serves until SIGINT or SIGTERM; returns the exit status.

    The port answers from the start (503 from /ready), the model loads beside it.
    Raises CheckpointError, ConfigError or EngineDead when there is nothing to serve.
    """
    folder = await asyncio.to_thread(resolve_model, engine_config.model, engine_config.revision)
    encoder, defaults = load_prompt_format(folder)
    names = config.served_model_name or (model_name(engine_config.model, folder),)
    backend = Backend(names)
    app = create_app(backend, config)
    listener = listen(config.host, config.port)
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            log_level=config.log_level,
            lifespan="off",
            server_header=False,
            # A client that does not even read the error its stream ends with.
            timeout_graceful_shutdown=round(config.shutdown_grace_s) + UNREAD_GRACE_S,
        )
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        # The second signal does not wait for running answers.
        server.force_exit = stop.is_set()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    http = asyncio.create_task(server.serve(sockets=[listener]))
    loading = asyncio.create_task(EngineClient.start(engine_config))
    stopping = asyncio.create_task(stop.wait())
    engine: EngineClient | None = None
    try:
        await asyncio.wait({http, loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            engine = loading.result()
            backend.service = ChatService(engine, encoder, names, defaults)
            url = f"http://{config.host}:{listener.getsockname()[1]}"
            print(start_up_table(names, engine.ready, url), file=sys.stderr, flush=True)
            await asyncio.wait({http, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        backend.draining = True
        server.should_exit = True
        loading.cancel()
        stopping.cancel()
        await asyncio.wait({http}, timeout=config.shutdown_grace_s)
        if engine is not None:
            # Whatever still runs ends with an error, and so the server does.
            await engine.close()
        await asyncio.gather(http, loading, stopping, return_exceptions=True)
    return 0


class _Server(uvicorn.Server):
    """Signals are handled by serve(): also while the model loads, and the engine ends last."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
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
            f"--host {host} --port {port} cannot be listened on: {error.strerror}"
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


def set_up_logging(level: str) -> None:
    """Sends every message to stderr, one line each."""
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(message)s")
    # It tells of its own coming and going; ours says more.
    logging.getLogger("uvicorn.error").setLevel("WARNING")


def model_name(model: str, folder: Path) -> str:
    """Returns the name a model is served under: a hub id as it is, else the folder's name."""
    is_hub_id = bool(model) and not Path(model).expanduser().is_dir()
    return model if is_hub_id else folder.resolve().name

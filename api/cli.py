"""`winnow serve`: an engine, and the HTTP server in front of it."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence

from api.checkpoint import open_checkpoint
from api.config import ChatConfig, ServerConfig
from api.listening import check_certificate
from api.logs import set_up_logging
from api.options import HelpFormatter, add_options, build, read_values
from api.processes.parent import ProcessDead, serve_together
from api.serving import serve
from api.stderr import let_go, tell
from engine.client import CheckpointError, ConfigError, EngineConfig, EngineDead

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
        "api_server_count",
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
        "client_priority",
        "max_requests_per_key",
        "max_tokens_per_minute_per_key",
        "max_body_bytes",
        "max_header_bytes",
        "header_timeout_s",
        "body_timeout_s",
        "idle_connection_s",
    ),
    "failures": (
        "max_engine_restarts",
        "engine_restart_window_s",
        "engine_start_limit_s",
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
        asyncio.run(_serve(build(EngineConfig, values), server_config, chat_config))
    except (ConfigError, CheckpointError, EngineDead, ProcessDead) as error:
        tell(f"winnow serve: {error}")
        return 1
    finally:
        let_go()
    return 0


async def _serve(
    engine_config: EngineConfig, config: ServerConfig, chat_config: ChatConfig
) -> None:
    """Serves until it is told to stop. Raises what there is no serving without."""
    checkpoint = await asyncio.to_thread(open_checkpoint, engine_config, config, chat_config)
    check_certificate(config)
    together = serve_together if config.api_server_count > 1 else serve
    await together(checkpoint, engine_config, config)

"""How the HTTP side is run: one frozen struct, validated once, at the edge."""

from __future__ import annotations

from typing import Literal

import msgspec

from api.conversation.restoration import MissingReasoning
from api.logs import LogFormat
from api.profiles import ProfileChoice
from cost_model.costs import LARGEST_PRICE
from engine.client import ConfigError

LEAST_HEADER_BYTES = 1024
SUMMARY_INSTRUCTION = (
    "Summarise the work above for someone who continues it without seeing it: what was asked, what "
    "was tried, every fact and figure that was found and where, and what is left to do. Write the "
    "summary only."
)


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the server. Field names are the flags' names."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface."""
    port: int = 8000
    """TCP port; 0 takes a free one."""
    api_server_count: int = 1
    """Processes that answer requests, all on the same port, with one engine. Limits of keys are
    each process's own."""
    served_model_name: tuple[str, ...] = ()
    """Names clients may use, the first in answers; empty: the checkpoint's name."""
    api_key_file: str | None = None
    """File of accepted bearer keys, one per line, read again when it changes and on SIGHUP; None:
    no key is asked for."""
    max_requests_per_key: int | None = None
    """Requests a key may have in flight, unless its line says `requests=N`; None: no limit."""
    max_tokens_per_minute_per_key: int | None = None
    """Tokens a key may use a minute, prompt and answer, unless its line says
    `tokens_per_minute=N`; None: no limit."""
    client_priority: bool = False
    """Let requests name any `priority`, so that they run before those of others; otherwise none
    below their key's own."""
    ssl_certfile: str | None = None
    """Certificate chain (PEM) to serve HTTPS with; None: plain HTTP."""
    ssl_keyfile: str | None = None
    """Private key (PEM) of the certificate; None: it is in the certificate's file."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call from a browser, * for all; empty: none."""
    max_body_bytes: int = 16 * 2**20
    """Longest request body; a longer one is refused with 413."""
    max_header_bytes: int = 64 * 2**10
    """Longest request head; a longer one is refused with 400."""
    header_timeout_s: float = 10.0
    """A connection whose request head is not complete by then is closed."""
    body_timeout_s: float = 60.0
    """A body that has not arrived by then is refused with 408."""
    idle_connection_s: float = 75.0
    """A connection without a request is closed after this; more than a proxy's own limit."""
    keep_alive_s: float = 10.0
    """A silent stream gets a comment this often."""
    shutdown_grace_s: float = 5.0
    """Time for running answers to finish after a signal to stop."""
    drain_delay_s: float = 0.0
    """Time after a signal to stop in which /ready says 503 and requests are still taken."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe messages written to stderr."""
    log_format: LogFormat = "text"
    """Lines for people, or one JSON object each."""
    metrics_port: int | None = None
    """TCP port that serves nothing but /metrics, without keys; 0 takes a free one. None: /metrics
    is served beside the API."""
    vllm_metrics: bool = False
    """Show the metrics that vLLM has under its names, too."""
    usage_cost: bool = False
    """Tell requests in `usage` what they cost by the cost model."""
    otlp_traces_endpoint: str | None = None
    """URL that takes OpenTelemetry spans over HTTP, one per request, such as
    http://localhost:4318/v1/traces; None: none are made."""
    profile_dir: str | None = None
    """Existing folder that POST /debug/profile?steps=N writes profiles of steps into; None: there
    is no such route."""
    max_engine_restarts: int = 3
    """Engines that may take the place of one that died within --engine-restart-window-s; with a
    death more the server exits with status 1. 0: with the first."""
    engine_restart_window_s: float = 600.0
    """A death is forgotten after this."""
    engine_start_limit_s: float = 1800.0
    """An engine that has not loaded its model by then counts as dead."""
    gpu_price_usd_per_hour: float | None = None
    """What an hour of one device costs; None: what its data sheet in the cost model says."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port is {self.port}; it must be in [0, 65535]")
        if not 0 <= (self.metrics_port or 0) <= 65535:
            raise ConfigError(f"--metrics-port is {self.metrics_port}; it must be in [0, 65535]")
        price = self.gpu_price_usd_per_hour
        if price is not None and not 0 <= price <= LARGEST_PRICE:
            raise ConfigError(
                f"--gpu-price-usd-per-hour is {price}; it must be in [0, {LARGEST_PRICE:g}]"
            )
        if self.max_body_bytes < 1:
            raise ConfigError(f"--max-body-bytes is {self.max_body_bytes}; it must be at least 1")
        for name in ("keep_alive_s", "header_timeout_s", "body_timeout_s", "idle_connection_s"):
            _above_zero(self, name)
        for name in ("engine_restart_window_s", "engine_start_limit_s", "api_server_count"):
            _above_zero(self, name)
        for name in ("shutdown_grace_s", "drain_delay_s", "max_engine_restarts"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{_flag(name)} is {getattr(self, name)}; it must be at least 0")
        for name in ("max_requests_per_key", "max_tokens_per_minute_per_key"):
            if getattr(self, name) is not None:
                _above_zero(self, name)
                if self.api_key_file is None:
                    raise ConfigError(f"{_flag(name)} needs --api-key-file")
        if self.max_header_bytes < LEAST_HEADER_BYTES:
            raise ConfigError(
                f"--max-header-bytes is {self.max_header_bytes}; it must be at least "
                f"{LEAST_HEADER_BYTES}"
            )
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ConfigError("--ssl-keyfile needs --ssl-certfile")


class ChatConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How conversations are read. Field names are the flags' names."""

    model_profile: ProfileChoice = "auto"
    """What the model can do; auto: by its name."""
    missing_reasoning: MissingReasoning = "restore"
    """What is done about a tool call of the running turn that comes back without its reasoning,
    unless the request says."""
    reasoning_store_bytes: int = 64 * 2**20
    """Memory for the tokens of tool turns; 0: none are kept."""
    reasoning_store_s: float = 3600.0
    """Time after which a tool turn nobody asked for is forgotten."""
    tool_output_markers: tuple[str, ...] = ()
    """What simulated tool output begins with, for requests with `thinking_retention:
    until_marker` that name no marker; empty: the openings of known clients."""
    summary_instruction: str = SUMMARY_INSTRUCTION
    """Asks the model for the summary of a tool loop."""
    summary_max_tokens: int = 1024
    """Longest summary."""
    lenient_tool_calls: bool = False
    """Read tool calls the model wrote in nearly the right form, too."""
    max_reasoning_tokens: int | None = None
    """Reasoning tokens after which every answer begins, unless the request asks for fewer; None: no
    limit."""

    def __post_init__(self) -> None:
        if self.reasoning_store_bytes < 0:
            raise ConfigError(
                f"--reasoning-store-bytes is {self.reasoning_store_bytes}; it must be at least 0"
            )
        for name in ("reasoning_store_s", "summary_max_tokens"):
            _above_zero(self, name)
        if self.max_reasoning_tokens is not None:
            _above_zero(self, "max_reasoning_tokens")
        if "" in self.tool_output_markers:
            raise ConfigError("--tool-output-markers must not be empty strings")
        if not self.summary_instruction.strip():
            raise ConfigError("--summary-instruction must not be empty")


def _above_zero(config: msgspec.Struct, name: str) -> None:
    if getattr(config, name) <= 0:
        raise ConfigError(f"{_flag(name)} is {getattr(config, name)}; it must be above 0")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")

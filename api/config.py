"""How the HTTP side is run: one frozen struct, validated once, at the edge."""

from __future__ import annotations

from typing import Literal

import msgspec

from engine.client import ConfigError


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the server. Field names are the flags' names."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface."""
    port: int = 8000
    """TCP port; 0 takes a free one."""
    served_model_name: tuple[str, ...] = ()
    """Names clients may use, the first in answers; empty: the checkpoint's name."""
    api_key_file: str | None = None
    """File of accepted bearer keys, one per line; None: no key is asked for."""
    max_body_bytes: int = 16 * 2**20
    """Longest request body; a longer one is refused with 413."""
    keep_alive_s: float = 10.0
    """A silent stream gets a comment this often."""
    shutdown_grace_s: float = 5.0
    """Time for running answers to finish after a signal to stop."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe messages written to stderr."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port is {self.port}; it must be in [0, 65535]")
        if self.max_body_bytes < 1:
            raise ConfigError(f"--max-body-bytes is {self.max_body_bytes}; it must be at least 1")
        if self.keep_alive_s <= 0:
            raise ConfigError(f"--keep-alive-s is {self.keep_alive_s}; it must be above 0")
        if self.shutdown_grace_s < 0:
            raise ConfigError(
                f"--shutdown-grace-s is {self.shutdown_grace_s}; it must be at least 0"
            )

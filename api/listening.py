"""Sockets that listen, and the HTTP server behind them."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from api.config import ServerConfig
from api.protection.guards import header_guard
from api.stopping import UNREAD_GRACE_S
from engine.client import ConfigError

BACKLOG = 2048
"""Connections that wait to be accepted."""


def listen(host: str, port: int, flag: str = "--port", *, shared: bool = False) -> socket.socket:
    """Returns a listening socket; raises ConfigError when the address cannot be had.

    shared: other processes of this server listen there, too; each connection goes to one of them.
    """
    with _errors_named(host, port, flag):
        return _bound(host, port, shared=shared, listens=True)


def hold_port(host: str, port: int) -> socket.socket:
    """Returns a socket that keeps the port for processes that share it, and takes no connection.

    Raises ConfigError when the address cannot be had, also when another server has only just begun
    to hold it and nobody listens there yet.
    """
    with _errors_named(host, port, "--port"):
        # Of two who do this at the same moment, Linux lets one listen.
        with _bound(host, port, shared=False, listens=True) as claim:
            claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held = _bound(host, claim.getsockname()[1], shared=True, listens=False)
            # With SO_REUSEADDR a socket that does not listen is in nobody's way; it was needed only
            # to get past connections of a server that has just ended.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        return held


@contextlib.contextmanager
def _errors_named(host: str, port: int, flag: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"--host {host} {flag} {port} cannot be listened on: {error.strerror}"
        ) from error


def _bound(host: str, port: int, *, shared: bool, listens: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((host, port))
        if listens:
            bound.listen(BACKLOG)
    except OSError:
        bound.close()
        raise
    return bound


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


class HttpServer(uvicorn.Server):
    """Leaves signals alone: they count while the model loads, too, and the engine ends last."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def api_server(app: ASGIApp, config: ServerConfig) -> HttpServer:
    """Returns the server of the API, with its limits on connections."""
    return HttpServer(
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
            timeout_graceful_shutdown=round(config.shutdown_grace_s) + UNREAD_GRACE_S,
        )
    )


def plain_server(app: ASGIApp) -> HttpServer:
    """Returns a server for those who run this one, such as of metrics."""
    return HttpServer(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=UNREAD_GRACE_S,
        )
    )

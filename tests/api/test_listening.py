"""api.listening: one port, and who may have it."""

from __future__ import annotations

import selectors
import socket
from contextlib import closing

import pytest

from api.listening import hold_port, listen
from engine.client import ConfigError

HOST = "127.0.0.1"
CONNECTIONS = 200
PATIENCE_S = 60


def test_connections_are_spread_over_those_who_share_a_port() -> None:
    with closing(hold_port(HOST, 0)) as held:
        port = held.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, port))
        with (
            closing(listen(HOST, port, shared=True)) as first,
            closing(listen(HOST, port, shared=True)) as second,
            selectors.DefaultSelector() as ready,
        ):
            ready.register(first, selectors.EVENT_READ, 0)
            ready.register(second, selectors.EVENT_READ, 1)
            taken = [0, 0]
            for _ in range(CONNECTIONS):
                with socket.create_connection((HOST, port)):
                    ((key, _),) = ready.select(PATIENCE_S)
                    accepted, _ = key.fileobj.accept()  # type: ignore[union-attr]
                    accepted.close()
                    taken[key.data] += 1
            assert sum(taken) == CONNECTIONS and all(taken)


def test_the_port_of_a_server_is_not_shared_with_strangers() -> None:
    with closing(hold_port(HOST, 0)) as held:
        port = held.getsockname()[1]
        with closing(listen(HOST, port, shared=True)):
            for taken in (listen, hold_port):
                with pytest.raises(ConfigError, match=f"--port {port}"):
                    taken(HOST, port)

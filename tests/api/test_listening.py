"""api.listening: one port, and who may have it."""

from __future__ import annotations

import selectors
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Barrier

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


@pytest.mark.parametrize(
    ("first", "second"),
    [(HOST, HOST), (HOST, "0.0.0.0"), ("0.0.0.0", HOST)],
)
def test_a_port_is_held_before_anybody_listens_on_it(first: str, second: str) -> None:
    with closing(hold_port(first, 0)) as held:
        port = held.getsockname()[1]
        for taken in (listen, hold_port):
            with pytest.raises(ConfigError, match=f"--port {port} cannot be listened on"):
                taken(second, port)
        listen(first, port, shared=True).close()
    hold_port(second, port).close()


def test_of_servers_that_begin_at_the_same_moment_no_two_have_the_port() -> None:
    with closing(listen(HOST, 0)) as free:
        port = free.getsockname()[1]
    everybody = Barrier(8)

    def begin(_: int) -> socket.socket | None:
        everybody.wait(PATIENCE_S)
        try:
            return hold_port(HOST, port)
        except ConfigError:
            return None

    with ThreadPoolExecutor(8) as pool:
        holders = [held for held in pool.map(begin, range(8)) if held is not None]
    for held in holders:
        held.close()
    assert len(holders) <= 1


@pytest.mark.parametrize("shared", [True, False])
def test_the_next_server_has_the_port_although_connections_linger(shared: bool) -> None:
    with closing(listen(HOST, 0, shared=shared)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection((HOST, port)) as client:
            accepted, _ = listener.accept()
            accepted.close()  # who closes first is left with the rest of the connection
            assert client.recv(1) == b""
    with closing(hold_port(HOST, port)):
        listen(HOST, port, shared=True).close()

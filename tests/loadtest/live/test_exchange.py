"""HTTP over a socket: stamps, kept connections, and everything that goes wrong by its name."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from loadtest.live.exchange import Address, AddressError, Connection, ExchangeError
from tests.loadtest.live.chat_server import Hangup, chat_server


@contextmanager
def listener(*answers: bytes) -> Iterator[Address]:
    """A server whose n-th connection reads a request, writes the n-th answer and closes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for answer in answers:
                connected, _ = server.accept()
                with connected:
                    connected.recv(1 << 16)
                    connected.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield Address("http", "127.0.0.1", server.getsockname()[1], "")
        thread.join()


def test_an_address_is_taken_apart() -> None:
    assert Address.parse("http://a:8000/v1/") == Address("http", "a", 8000, "/v1")
    assert Address.parse("https://b") == Address("https", "b", 443, "")
    assert str(Address.parse("http://[::1]:80/x")) == "http://[::1]:80/x"


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://a", "http://", "http://a:99999", "http://a?b", "http://[::"],
)
def test_a_url_that_is_none_is_named(url: str) -> None:
    with pytest.raises(AddressError, match="allowed: http"):
        Address.parse(url)


def test_pieces_are_stamped_between_sending_and_now() -> None:
    with chat_server() as server:
        connection = Connection(Address.parse(server.url))
        begin_s = time.perf_counter()
        body = b'{"messages": []}'
        response = connection.request("POST", "/v1/chat/completions", {}, body)
        pieces = list(response)
        end_s = time.perf_counter()
        connection.close()
    times = [begin_s, response.at_s, *(piece.at_s for piece in pieces), end_s]
    assert times == sorted(times)
    assert b"".join(piece.data for piece in pieces).endswith(b"data: [DONE]\n\n")


def test_a_connection_is_kept() -> None:
    with chat_server() as server:
        connection = Connection(Address.parse(server.url))
        for _ in range(3):
            assert connection.request("GET", "/v1/models", {}).read()
        assert server.connections == 1
        # What is left unread cannot be followed by another answer.
        connection.request("GET", "/v1/models", {})
        assert connection.request("GET", "/v1/models", {}).status == 200
        assert server.connections == 2
        connection.close()


def test_a_kept_connection_that_was_closed_meanwhile_is_opened_again() -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    with listener(answer, answer) as address:
        connection = Connection(address)
        assert connection.request("GET", "/", {}).read() == b"ok"
        assert connection.request("GET", "/", {}).read() == b"ok"
        connection.close()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "closed"),
        (b"HTTP/1.1 200 OK\r\n", "closed"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", "closed"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhal", "closed"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "protocol"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n\r\n", "protocol"),
    ],
)
def test_a_broken_answer_says_how(answer: bytes, why: str) -> None:
    with listener(answer) as address:
        connection = Connection(address)
        with pytest.raises(ExchangeError) as caught:
            connection.request("GET", "/", {}).read()
    assert caught.value.why == why, caught.value


def test_a_new_connection_is_not_tried_twice() -> None:
    def hang_up(_: object) -> list[object]:
        raise Hangup

    with chat_server(hang_up) as server:
        connection = Connection(Address.parse(server.url))
        with pytest.raises(ExchangeError) as caught:
            connection.request("POST", "/v1/chat/completions", {}, b"{}")
        assert caught.value.why == "closed" and len(server.bodies) == 1


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ExchangeError, match=f"no connection to http://127.0.0.1:{port}") as caught:
        Connection(Address("http", "127.0.0.1", port, "")).request("GET", "/", {})
    assert caught.value.why == "connect"


def test_a_silent_server_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = Address("http", "127.0.0.1", silent.getsockname()[1], "")
        connection = Connection(address, silence_limit_s=0.05)
        with pytest.raises(ExchangeError, match=r"sent nothing for 0\.05 s") as caught:
            connection.request("GET", "/", {})
    assert caught.value.why == "timeout"


def test_no_tls_where_https_was_asked_for() -> None:
    with listener(b"not a handshake") as address:
        with pytest.raises(ExchangeError, match="no TLS") as caught:
            Connection(address._replace(scheme="https")).request("GET", "/", {})
    assert caught.value.why == "tls"

"""HTTP/1.1 over one socket, every piece stamped with the moment it was read from it.

Client libraries hand a stream out in pieces of their own making, some time after it came. Here the
clock is read between `recv` and anything else. Sockets are the standard library's, so that gevent
can take them over.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

import h11

READ_BYTES = 1 << 16
Why = Literal["dns", "connect", "tls", "timeout", "closed", "protocol"]


class ExchangeError(Exception):
    """No answer, or only the beginning of one."""

    def __init__(self, why: Why, message: str) -> None:
        super().__init__(message)
        self.why: Why = why


class AddressError(ValueError):
    """A URL that cannot be one of a server; the message says what it must look like."""


class Address(NamedTuple):
    """Where a server is."""

    scheme: str
    host: str
    port: int
    path: str
    """Before every route, without a slash at its end."""

    @classmethod
    def parse(cls, url: str) -> Address:
        """Returns the address in `http[s]://host[:port][/path]`; raises AddressError."""
        allowed = "allowed: http://HOST:PORT or https://HOST:PORT, a path may follow"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise AddressError(f"{url!r}: {error}; {allowed}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise AddressError(f"{url!r}; {allowed}")
        if parts.query or parts.fragment or parts.username:
            raise AddressError(f"{url!r} has a query, a fragment or a user; {allowed}")
        default = 443 if parts.scheme == "https" else 80
        return cls(parts.scheme, parts.hostname, port or default, parts.path.rstrip("/"))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


class Piece(NamedTuple):
    """Bytes of a body, and when they were read from the socket."""

    at_s: float
    data: bytes


class Response:
    """The head of an answer; iterating reads its body."""

    def __init__(self, connection: Connection, head: h11.Response, at_s: float) -> None:
        self.status = int(head.status_code)
        self.headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers
        }
        """By lower-case name."""
        self.at_s = at_s
        self._connection = connection

    def __iter__(self) -> Iterator[Piece]:
        """Yields the body as it comes; raises ExchangeError."""
        return self._connection.body()

    def read(self) -> bytes:
        """Returns the whole body; raises ExchangeError."""
        return b"".join(piece.data for piece in self)


class Connection:
    """One connection to a server, opened when it is needed and kept for the next request."""

    def __init__(
        self, address: Address, *, connect_limit_s: float = 10.0, silence_limit_s: float = 120.0
    ) -> None:
        """silence_limit_s: the longest that a server may send nothing."""
        self.address = address
        self._connect_limit_s, self._silence_limit_s = connect_limit_s, silence_limit_s
        self._tls = ssl.create_default_context() if address.scheme == "https" else None
        self._socket: socket.socket | None = None
        self._http = h11.Connection(h11.CLIENT)
        self._read_s = 0.0
        self._cut = False

    def request(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes = b""
    ) -> Response:
        """Sends a request and returns the head of its answer.

        A kept connection that the server has closed meanwhile is opened again, once. What is left
        of the answer before is not read: its connection is given up. Raises ExchangeError.
        """
        kept = self._can_be_kept()
        try:
            return self._request(method, path, headers, body)
        except ExchangeError as error:
            if not kept or error.why != "closed":
                raise
        return self._request(method, path, headers, body)

    def close(self) -> None:
        """Closes the socket; the next request opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _can_be_kept(self) -> bool:
        if self._socket is None:
            return False
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            return True
        self.close()
        return False

    def _request(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Response:
        connected = self._socket or self._open()
        host = self.address.host if ":" not in self.address.host else f"[{self.address.host}]"
        head = h11.Request(
            method=method,
            target=(self.address.path + path) or "/",
            headers=[
                ("host", f"{host}:{self.address.port}"),
                ("content-length", str(len(body))),
                *headers.items(),
            ],
        )
        events = (head, h11.Data(data=body), h11.EndOfMessage())
        try:
            connected.sendall(b"".join(self._http.send(event) or b"" for event in events))
        except TimeoutError:
            self.close()
            raise ExchangeError("timeout", "the server does not take the request in") from None
        except OSError as error:
            self.close()
            raise ExchangeError("closed", f"closed while sending: {error}") from None
        while True:
            event = self._next_event()
            if isinstance(event, h11.Response):
                return Response(self, event, self._read_s)
            if not isinstance(event, h11.InformationalResponse):
                self.close()
                raise ExchangeError("closed", "closed before an answer began")

    def _open(self) -> socket.socket:
        address = self.address
        try:
            connected = socket.create_connection(
                (address.host, address.port), timeout=self._connect_limit_s
            )
        except socket.gaierror as error:
            raise ExchangeError("dns", f"no host {address.host!r}: {error.strerror}") from None
        except TimeoutError:
            raise ExchangeError(
                "connect", f"no connection to {address} in {self._connect_limit_s:g} s"
            ) from None
        except OSError as error:
            raise ExchangeError("connect", f"no connection to {address}: {error}") from None
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            try:
                connected = self._tls.wrap_socket(connected, server_hostname=address.host)
            except OSError as error:
                connected.close()
                raise ExchangeError("tls", f"no TLS with {address}: {error}") from None
        connected.settimeout(self._silence_limit_s)
        self._socket, self._http = connected, h11.Connection(h11.CLIENT)
        return connected

    def body(self) -> Iterator[Piece]:
        """Yields the rest of the answer that is being read; raises ExchangeError."""
        while True:
            event = self._next_event()
            if isinstance(event, h11.Data):
                yield Piece(self._read_s, bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                if self._http.our_state is h11.MUST_CLOSE or self._http.their_state is h11.CLOSED:
                    self.close()
                return
            else:
                self.close()
                raise ExchangeError("closed", "closed in the middle of an answer")

    def _next_event(self) -> h11.Event:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(self._receive())
        except h11.RemoteProtocolError as error:
            self.close()
            if self._cut:
                raise ExchangeError("closed", "closed in the middle of an answer") from None
            raise ExchangeError("protocol", f"not HTTP/1.1: {error}") from None
        if event is h11.PAUSED:
            self.close()
            raise ExchangeError("protocol", "the server sent more than an answer")
        return event  # type: ignore[return-value]

    def _receive(self) -> bytes:
        if self._socket is None:
            raise ExchangeError("closed", "the connection was closed")
        try:
            data = self._socket.recv(READ_BYTES)
            self._read_s = time.perf_counter()
        except TimeoutError:
            self.close()
            raise ExchangeError(
                "timeout", f"the server sent nothing for {self._silence_limit_s:g} s"
            ) from None
        except OSError as error:
            self.close()
            raise ExchangeError("closed", f"closed in the middle of an answer: {error}") from None
        self._cut = not data
        return data

"""Who is connected to the engine, and which message concerns whom.

The first connection is that of the process that started the engine: its end is the engine's end.
Other API processes come through a listening socket and go as they like; what one of them has asked
for is aborted when it is gone, and the others notice nothing.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
import time
from queue import SimpleQueue

import msgspec

from engine.intake import Intake
from engine.messages import (
    Abort,
    Accepted,
    FromEngine,
    Output,
    Outputs,
    Profile,
    Profiled,
    Ready,
    Refused,
    Shutdown,
    Snapshot,
    Steps,
    Submit,
    ToEngine,
)
from engine.wire import frame, read_frame

logger = logging.getLogger("winnow.engine")

PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED)
"""Why a connection may not be taken in now and the next one may."""
ACCEPT_PAUSE_S = 0.5
"""After a connection that could not be taken in."""
LAST_WORDS_S = 2.0
"""How long the engine's last message may take to be read before the engine ends without that."""


class Connection:
    """One API process. What it is sent waits in a queue of its own: a slow reader delays nobody."""

    def __init__(self, connection: socket.socket) -> None:
        self.answered = 0
        """Submits that were accepted or refused."""
        self._socket = connection
        self._outbox: SimpleQueue[FromEngine | None] = SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="writer", daemon=True)
        self._writer.start()

    def send(self, message: FromEngine) -> None:
        """Never blocks; who is gone does not hear it."""
        self._outbox.put(message)

    def read(self) -> bytes | None:
        """Returns the next payload, None when the other side is gone; blocks."""
        try:
            return read_frame(self._socket)
        except OSError:
            return None

    def close(self) -> None:
        """Closes the socket once everything is sent, or nobody reads it."""
        self._outbox.put(None)
        self._writer.join(LAST_WORDS_S)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _write(self) -> None:
        encoder = msgspec.msgpack.Encoder()
        while (message := self._outbox.get()) is not None:
            try:
                self._socket.sendall(frame(encoder.encode(message)))
            except OSError:
                # The other side is gone: its reader sees the same.
                return


class _Asked(msgspec.Struct):
    """A request that runs for a connection other than the owner's."""

    by: Connection
    unfinished: int


class Connections:
    """Every connection of one engine. The owner's requests are all that nobody else has asked for.

    `send` is called by the step loop, `serve` runs on a thread of each connection.
    """

    def __init__(self, owner: Connection) -> None:
        self._owner = owner
        self._others: list[Connection] = []
        self._closed = False
        self._asked: dict[str, _Asked] = {}
        self._profiles: Connection | None = None
        """Who waits for a profile."""
        self._lock = threading.Lock()

    def send(self, message: FromEngine) -> None:
        """Sends a message to whom it concerns; returns at once."""
        with self._lock:
            match message:
                case Outputs() if self._asked:
                    self._send_outputs(message)
                case Accepted(id=request_id):
                    asked = self._asked.get(request_id)
                    self._answer(self._owner if asked is None else asked.by, message)
                case Refused(id=request_id):
                    asked = self._asked.pop(request_id, None)
                    self._answer(self._owner if asked is None else asked.by, message)
                case Snapshot():
                    for connection in (self._owner, *self._others):
                        # Each counts what it has sent; what others sent is in the queue anyway.
                        seen = connection.answered
                        connection.send(msgspec.structs.replace(message, submits=seen))
                case Profiled():
                    (self._profiles or self._owner).send(message)
                    self._profiles = None
                case Outputs() | Steps():
                    self._owner.send(message)
                case _:  # Ready is for who comes, Failed for all
                    for connection in (self._owner, *self._others):
                        connection.send(message)

    def serve(self, connection: Connection, intake: Intake) -> None:
        """Reads a connection to its end; then its requests are over, or the engine is."""
        decoder = msgspec.msgpack.Decoder(ToEngine)
        try:
            while (payload := connection.read()) is not None:
                message = decoder.decode(payload)
                if isinstance(message, Shutdown) and connection is not self._owner:
                    return
                if self._admits(connection, message):
                    intake.take(message)
        except msgspec.DecodeError as error:
            logger.error("a connection is closed, for it sent what is no message: %s", error)
        finally:
            self._gone(connection, intake)

    def accept(self, listener: socket.socket, ready: Ready, intake: Intake) -> None:
        """Lets other API processes in, until all is closed."""
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError as error:
                logger.error("an API process could not be let in: %s", error)
                if error.errno not in PASSING:
                    return
                # Those who wait are let in when there is a descriptor again.
                time.sleep(ACCEPT_PAUSE_S)
                continue
            with self._lock:
                if self._closed:
                    accepted.close()
                    return
                connection = Connection(accepted)
                connection.send(ready)
                self._others.append(connection)
            threading.Thread(
                target=self.serve, args=(connection, intake), name="reader", daemon=True
            ).start()

    def close(self) -> None:
        """Closes all connections once they were sent everything."""
        with self._lock:
            self._closed = True
            connections = [self._owner, *self._others]
        for connection in connections:
            connection.close()

    def _admits(self, connection: Connection, message: ToEngine) -> bool:
        """Notes who asks for what; False for what goes no further."""
        match message:
            case Submit(id=request_id, n=n):
                with self._lock:
                    if request_id in self._asked:
                        taken = f"request id {request_id!r} is running for another connection"
                        self._answer(
                            connection, Refused(request_id, 400, "duplicate_request_id", taken)
                        )
                        return False
                    if connection is not self._owner:
                        self._asked[request_id] = _Asked(connection, n)
            case Profile():
                with self._lock:
                    if self._profiles is not None:
                        connection.send(Profiled("", 0, "a profile is being taken"))
                        return False
                    self._profiles = connection
            case _:
                pass
        return True

    def _gone(self, connection: Connection, intake: Intake) -> None:
        if connection is self._owner:
            intake.close()
            return
        with self._lock:
            self._others.remove(connection)
            orphans = [name for name, asked in self._asked.items() if asked.by is connection]
        for request_id in orphans:
            intake.take(Abort(request_id))
        connection.close()

    @staticmethod
    def _answer(connection: Connection, message: Accepted | Refused) -> None:
        connection.answered += 1
        connection.send(message)

    def _send_outputs(self, message: Outputs) -> None:
        shares: dict[Connection, list[Output]] = {}
        for output in message.outputs:
            asked = self._asked.get(output.id)
            to = self._owner if asked is None else asked.by
            shares.setdefault(to, []).append(output)
            if asked is not None and output.finish is not None:
                asked.unfinished -= 1
                if not asked.unfinished:
                    del self._asked[output.id]
        for connection, outputs in shares.items():
            connection.send(Outputs(message.step, outputs))

"""engine.connections: each process hears of its own requests, and takes only those with it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec
import pytest

from engine.connections import Connection, Connections
from engine.messages import (
    Abort,
    Accepted,
    Failed,
    FromEngine,
    Output,
    Outputs,
    Profile,
    Profiled,
    Ready,
    Refused,
    Sampling,
    Shutdown,
    Snapshot,
    Steps,
    Submit,
    ToEngine,
)
from engine.wire import frame, read_frame

PATIENCE_S = 60
SAMPLING = Sampling(max_tokens=3)
READY = Ready("deepseek_v32", 320, 4096, 64, 8, {}, "cpu", "float32")
SNAPSHOT = Snapshot(
    step=1,
    running=0,
    waiting=0,
    backlog_tokens=0,
    live_pages=0,
    idle_pages={},
    free_pages=8,
    total_pages=8,
    prefill_tokens_per_s=0.0,
    decode_tokens_per_s=0.0,
    preemptions=0,
    submits=99,
)
_DECODER = msgspec.msgpack.Decoder(FromEngine)


class Peer:
    """The process at the other end."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE_S)
        self.socket = connection

    def say(self, message: ToEngine) -> None:
        self.socket.sendall(frame(msgspec.msgpack.encode(message)))

    def hear(self) -> Any:
        """The next message, None when the engine has closed."""
        payload = read_frame(self.socket)
        return None if payload is None else _DECODER.decode(payload)


class Recorder:
    """In place of the intake."""

    def __init__(self) -> None:
        self.taken: SimpleQueue[ToEngine] = SimpleQueue()
        self.closed = threading.Event()

    def take(self, message: ToEngine) -> None:
        self.taken.put(message)

    def close(self) -> None:
        self.closed.set()


class Engine:
    """Connections without an engine behind them."""

    def __init__(self, path: Path) -> None:
        ours, theirs = socket.socketpair()
        owner = Connection(ours)
        self.owner = Peer(theirs)
        self.intake: Any = Recorder()
        self.connections = Connections(owner)
        self.path = path
        self.peers = [self.owner]
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.threads = [
            threading.Thread(target=self.connections.serve, args=(owner, self.intake)),
            threading.Thread(target=self._accept),
        ]
        for thread in self.threads:
            thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            self.connections.accept(self.listener, READY, self.intake)

    def close(self) -> None:
        for peer in self.peers:
            peer.socket.close()
        self.connections.close()
        self.listener.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(PATIENCE_S)
        self.listener.close()

    def join(self) -> Peer:
        """Another process, which has been greeted."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self.path))
        peer = Peer(connection)
        self.peers.append(peer)
        assert peer.hear() == READY
        return peer

    def taken(self) -> ToEngine:
        message: ToEngine = self.intake.taken.get(timeout=PATIENCE_S)
        return message

    def submit(self, peer: Peer, request_id: str, n: int = 1) -> None:
        peer.say(Submit(request_id, [1, 2], SAMPLING, n=n))
        assert self.taken() == Submit(request_id, [1, 2], SAMPLING, n=n)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(tmp_path / "door")
    yield engine
    engine.close()


def output(request_id: str, choice: int = 0, finish: Any = None) -> Output:
    return Output(request_id, choice, [5], None, finish)


def test_each_hears_of_its_own_requests(engine: Engine) -> None:
    first, second = engine.join(), engine.join()
    engine.submit(engine.owner, "mine")
    engine.submit(first, "a", n=2)
    engine.submit(second, "b")
    for name in ("mine", "a", "b"):
        engine.connections.send(Accepted(name, 0))
    step = Outputs(4, [output("b"), output("mine"), output("a"), output("a", 1)])
    engine.connections.send(step)
    assert [engine.owner.hear() for _ in range(2)] == [
        Accepted("mine", 0),
        Outputs(4, [output("mine")]),
    ]
    assert [first.hear() for _ in range(2)] == [
        Accepted("a", 0),
        Outputs(4, [output("a"), output("a", 1)]),
    ]
    assert [second.hear() for _ in range(2)] == [Accepted("b", 0), Outputs(4, [output("b")])]


def test_a_request_is_forgotten_with_its_last_choice(engine: Engine) -> None:
    peer = engine.join()
    engine.submit(peer, "a", n=2)
    engine.connections.send(Outputs(1, [output("a", 0, "stop")]))
    engine.connections.send(Outputs(2, [output("a", 1, "length")]))
    assert [len(peer.hear().outputs) for _ in range(2)] == [1, 1]
    engine.submit(peer, "a")  # the name is free again
    engine.connections.send(Refused("a", 429, "queue_full", "full"))
    assert peer.hear().code == "queue_full"
    engine.submit(peer, "a")


def test_who_goes_takes_its_own_requests_with_it(engine: Engine) -> None:
    leaves, stays = engine.join(), engine.join()
    engine.submit(leaves, "a")
    engine.submit(stays, "b")
    leaves.socket.close()
    assert engine.taken() == Abort("a")
    # The end of what was aborted is for nobody; the other one's goes on.
    engine.connections.send(Outputs(1, [output("a", 0, "abort"), output("b")]))
    assert stays.hear() == Outputs(1, [output("b")])
    assert not engine.intake.closed.is_set()
    engine.submit(engine.join(), "a")


def test_shutdown_is_the_end_of_who_says_it(engine: Engine) -> None:
    leaves, stays = engine.join(), engine.join()
    engine.submit(leaves, "a")
    leaves.say(Shutdown())
    assert engine.taken() == Abort("a")
    assert leaves.hear() is None
    engine.submit(stays, "b")
    engine.owner.say(Shutdown())
    assert engine.taken() == Shutdown()


def test_garbage_ends_the_connection_it_came_by(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    broken, stays = engine.join(), engine.join()
    engine.submit(broken, "a")
    broken.socket.sendall(frame(b"\xc1"))
    assert engine.taken() == Abort("a")
    assert broken.hear() is None
    engine.submit(stays, "b")
    assert "what is no message" in caplog.text


def test_the_owners_end_is_the_engines(engine: Engine) -> None:
    engine.owner.socket.close()
    assert engine.intake.closed.wait(PATIENCE_S)


def test_a_name_in_use_is_refused_to_others(engine: Engine) -> None:
    first, second = engine.join(), engine.join()
    engine.submit(first, "a")
    second.say(Submit("a", [3], SAMPLING))
    refused = second.hear()
    assert (refused.id, refused.code) == ("a", "duplicate_request_id")
    engine.connections.send(Accepted("a", 0))
    assert first.hear() == Accepted("a", 0)
    second.socket.close()
    engine.submit(first, "b")  # comes next: nothing of the first was aborted


def test_snapshots_tell_each_what_was_seen_of_its_own(engine: Engine) -> None:
    first, second = engine.join(), engine.join()
    engine.submit(first, "a")
    engine.submit(first, "b")
    engine.submit(second, "c")
    engine.connections.send(Accepted("a", 0))
    engine.connections.send(Refused("c", 429, "queue_full", "full"))
    engine.connections.send(SNAPSHOT)
    assert [first.hear(), first.hear().submits] == [Accepted("a", 0), 1]
    assert [second.hear().code, second.hear().submits] == ["queue_full", 1]
    assert engine.owner.hear().submits == 0


def test_steps_are_the_owners_and_last_words_are_for_all(engine: Engine) -> None:
    peer = engine.join()
    engine.connections.send(Steps([]))
    engine.connections.send(Failed("out of memory"))
    assert [engine.owner.hear(), engine.owner.hear()] == [Steps([]), Failed("out of memory")]
    assert peer.hear() == Failed("out of memory")
    engine.connections.close()
    assert peer.hear() is None and engine.owner.hear() is None


def test_a_profile_goes_to_who_asked_first(engine: Engine) -> None:
    first, second = engine.join(), engine.join()
    first.say(Profile(2, "file"))
    assert engine.taken() == Profile(2, "file")
    second.say(Profile(2, "other"))
    assert second.hear().error == "a profile is being taken"
    engine.connections.send(Profiled("file", 2))
    assert first.hear() == Profiled("file", 2)
    second.say(Profile(2, "other"))
    assert engine.taken() == Profile(2, "other")


def test_a_process_that_reads_nothing_holds_up_nobody(engine: Engine) -> None:
    deaf, other = engine.join(), engine.join()
    engine.submit(deaf, "a")
    engine.submit(other, "b")
    much = Output("a", 0, list(range(100_000)), None, None)
    for _ in range(30):
        engine.connections.send(Outputs(1, [much]))
    engine.connections.send(Outputs(2, [output("b")]))
    assert other.hear() == Outputs(2, [output("b")])
    deaf.socket.close()
    assert engine.taken() == Abort("a")


def test_nobody_is_let_in_once_all_is_closed(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    connections = Connections(Connection(ours))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "engine"))
    listener.listen()
    door: Any = None
    accepting = threading.Thread(target=connections.accept, args=(listener, READY, door))
    accepting.start()
    connections.close()
    with theirs, socket.socket(socket.AF_UNIX) as late:
        late.connect(str(tmp_path / "engine"))
        late.settimeout(PATIENCE_S)
        assert late.recv(1) == b"", "no Ready, and the end at once"
    accepting.join(PATIENCE_S)
    assert not accepting.is_alive()
    listener.close()

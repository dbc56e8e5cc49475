"""The engine process: `python -m engine --socket-fd N`, started by `engine.client`.

The first frame on the socket is the EngineConfig as JSON; then Ready or Failed goes back.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
import threading
import traceback
from queue import SimpleQueue

import msgspec

from engine.config import ConfigError, EngineConfig
from engine.core import EngineCore
from engine.grammar import GrammarCompiler
from engine.intake import Intake
from engine.loading import load_replica
from engine.messages import Failed, FromEngine, ToEngine
from engine.model_config import CheckpointError
from engine.wire import frame, read_frame


def main() -> int:
    """Returns the exit status: 0 after an orderly end, 1 when the engine failed."""
    parser = argparse.ArgumentParser(prog="python -m engine")
    parser.add_argument("--socket-fd", type=int, required=True)
    connection = socket.socket(fileno=parser.parse_args().socket_fd)
    # Signals reach the whole process group; the API drains first and then closes the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    outbox: SimpleQueue[FromEngine | None] = SimpleQueue()
    writer = threading.Thread(target=_write, args=(connection, outbox), name="writer")
    writer.start()
    status = 1
    try:
        _serve(connection, outbox)
        status = 0
    except (CheckpointError, ConfigError) as error:
        outbox.put(Failed(str(error)))
    except Exception as error:
        traceback.print_exc()
        outbox.put(Failed(f"{type(error).__name__}: {error}"))
    finally:
        outbox.put(None)
        writer.join()
        connection.close()
    return status


def _serve(connection: socket.socket, outbox: SimpleQueue[FromEngine | None]) -> None:
    first = read_frame(connection)
    if first is None:
        return
    replica = load_replica(msgspec.json.decode(first, type=EngineConfig))
    inbox: SimpleQueue[ToEngine | None] = SimpleQueue()
    core = EngineCore(replica.scheduler, replica.runner, inbox, outbox.put)
    compiler = GrammarCompiler(
        replica.folder, replica.model.vocab_size, replica.defaults.eos_token_ids
    )
    intake = Intake(replica.scheduler, inbox, compiler)
    reader = threading.Thread(target=_read, args=(connection, intake), name="reader", daemon=True)
    outbox.put(replica.ready)
    reader.start()
    core.run()


def _read(connection: socket.socket, intake: Intake) -> None:
    """Decodes frames and hands them on until there are no more, so that the loop stops."""
    decoder = msgspec.msgpack.Decoder(ToEngine)
    try:
        while (payload := read_frame(connection)) is not None:
            intake.take(decoder.decode(payload))
    except ConnectionError:
        pass  # the API is gone, as at end of file
    finally:
        intake.close()


def _write(connection: socket.socket, outbox: SimpleQueue[FromEngine | None]) -> None:
    """Sends the outbox; the core loop never waits for a slow reader."""
    encoder = msgspec.msgpack.Encoder()
    while (message := outbox.get()) is not None:
        try:
            connection.sendall(frame(encoder.encode(message)))
        except OSError:
            # The API is gone: the reader sees the same and ends the loop.
            return


if __name__ == "__main__":
    sys.exit(main())

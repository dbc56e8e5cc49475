"""The engine process: `python -m engine --socket-fd N`, started by `engine.client`.

The first frame on the socket is the EngineConfig as JSON; then Ready or Failed goes back. With
--listen-fd other API processes may connect to that socket; each is sent Ready, too.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import signal
import socket
import sys
import threading
import traceback
from queue import SimpleQueue

import msgspec

from engine.config import ConfigError, EngineConfig
from engine.connections import Connection, Connections
from engine.core import EngineCore
from engine.grammar import GrammarCompiler
from engine.heap import set_heap_aside
from engine.intake import Intake
from engine.loading import load_replica
from engine.messages import Failed, ToEngine
from engine.model_config import CheckpointError


def main() -> int:
    """Returns the exit status: 0 after an orderly end, 1 when the engine failed."""
    parser = argparse.ArgumentParser(prog="python -m engine")
    parser.add_argument("--socket-fd", type=int, required=True)
    parser.add_argument("--listen-fd", type=int)
    options = parser.parse_args()
    # Signals reach the whole process group; the API drains first and then closes the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # An engine that has been silent for too long is asked for its stacks before it is killed.
    faulthandler.register(signal.SIGUSR1)

    owner = Connection(socket.socket(fileno=options.socket_fd))
    connections = Connections(owner)
    listener = None if options.listen_fd is None else socket.socket(fileno=options.listen_fd)
    status = 1
    try:
        _serve(owner, connections, listener)
        status = 0
    except (CheckpointError, ConfigError) as error:
        connections.send(Failed(str(error)))
    except Exception as error:
        connections.send(Failed(f"{type(error).__name__}: {error}"))
        with contextlib.suppress(OSError):  # a full disk must not silence the line above
            traceback.print_exc()
    finally:
        connections.close()
    return status


def _serve(owner: Connection, connections: Connections, listener: socket.socket | None) -> None:
    first = owner.read()
    if first is None:
        return
    config = msgspec.json.decode(first, type=EngineConfig)
    # A log has no use for a moving bar, and a full disk under it would be an error.
    replica = load_replica(config, progress=sys.stderr.isatty())
    inbox: SimpleQueue[ToEngine | None] = SimpleQueue()
    core = EngineCore(replica.scheduler, replica.runner, inbox, connections.send)
    compiler = GrammarCompiler(
        replica.folder, replica.model.vocab_size, replica.defaults.eos_token_ids
    )
    intake = Intake(replica.scheduler, inbox, compiler)
    set_heap_aside()
    owner.send(replica.ready)
    threading.Thread(
        target=connections.serve, args=(owner, intake), name="reader", daemon=True
    ).start()
    if listener is not None:
        threading.Thread(
            target=connections.accept,
            args=(listener, replica.ready, intake),
            name="listener",
            daemon=True,
        ).start()
    core.run()


if __name__ == "__main__":
    sys.exit(main())

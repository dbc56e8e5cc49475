"""The server under test, its processes, and the harm that is done to them."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.api.engine_process import api_pids, engine_pid, listens

ROOT = Path(__file__).parents[2]
CLOCK = Path(__file__).parent / "clock"
EXIT_PATIENCE_S = 60
SILENCE_LIMIT_S = 10.0
"""After which a step that hangs is the end of its engine."""


class Target:
    """`winnow serve` with a wall clock that can be set and a log that can be full."""

    def __init__(self, folder: Path, options: Sequence[str]) -> None:
        """folder: for its log and its clock."""
        self.log, self._clock = folder / "server.log", folder / "clock"
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._port = port
        path = os.pathsep.join(filter(None, (str(CLOCK), os.environ.get("PYTHONPATH"))))
        environment = {"PYTHONPATH": path, "SOAK_CLOCK": str(self._clock)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, str(ROOT / "winnow.py"), "serve", "--port", str(port)),
                    *("--silence-limit-s", str(SILENCE_LIMIT_S), "--engine-restart-window-s", "60"),
                    *("--max-engine-restarts", "6", "--log-format", "json"),
                    *("--reasoning-store-bytes", "256KiB"),
                    *options,
                ],
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=os.environ | environment,
            )

    @property
    def engine(self) -> int | None:
        """The engine's process id, None while there is none."""
        return engine_pid(self.process.pid)

    @property
    def apis(self) -> set[int]:
        """Process ids of the API processes; none where the server is its own."""
        return api_pids(self.process.pid)

    @property
    def listening(self) -> set[int]:
        """Those of them that take connections."""
        return {pid for pid in self.apis if listens(pid, self._port)}

    def harm_engine(self, number: signal.Signals) -> bool:
        """Kills or stops the engine; False if there is none."""
        pid = self.engine
        if pid is None:
            return False
        os.kill(pid, number)
        return True

    def set_clock(self, offset_s: float) -> None:
        """Moves the wall clock of all its processes away from the right time."""
        beside = self._clock.with_suffix(".new")
        beside.write_text(str(offset_s))
        beside.replace(self._clock)

    def fill_disk(self, full: bool) -> None:
        """Lets no write to the log succeed any more, or all of them again.

        No file of the processes may grow beyond the log's size: to them it is a full disk.
        """
        limit = self.log.stat().st_size if full else resource.RLIM_INFINITY
        for pid in filter(None, (self.process.pid, self.engine, *self.apis)):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def stop(self) -> int:
        """Stops the server as an orchestrator would; returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(EXIT_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def resident_bytes(pid: int) -> int:
    """The memory that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")

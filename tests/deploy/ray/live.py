"""The application on a Ray cluster of this machine, as its tests see it from outside."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv-ray" / "bin" / "python"
START_PATIENCE_S = 600.0
PATIENCE_S = 300.0
SERVER_AT = re.compile(r"Replica pid=(\d+)\).*? url +(http://\S+)/v1")
REPLICA = "ray::ServeReplica:winnow:Replica"
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # with it Ray would write a token into the home folder
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_gcs_server_port_wait_time_s": "120",
    "RAY_worker_register_timeout_seconds": "300",
}

T = TypeVar("T")


class LiveReplica(NamedTuple):
    """Its processes, and where its server listens."""

    actor: int
    server: int
    url: str


class LiveCluster:
    """Started with the application's arguments; `url` is where it answers."""

    def __init__(self, *arguments: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as held:
            port = held.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        # Ray's sockets have long names, and a socket's name must be short.
        self._folder = tempfile.TemporaryDirectory(prefix="ray", dir="/tmp")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.process = subprocess.Popen(
            [PYTHON, "-m", "tests.deploy.ray.cluster", str(port), *arguments],
            cwd=ROOT,
            env=environment | ENVIRONMENT | {"RAY_TMPDIR": self._folder.name},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.log = ""
        self._up = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self._up.wait(START_PATIENCE_S)
        if "\nup\n" not in self.log:
            self.close()
            raise RuntimeError(f"the cluster did not start:\n{self.log}")

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.log += line
                if line == "up\n":
                    self._up.set()
        self._up.set()

    def replicas(self) -> list[LiveReplica]:
        """Returns those whose server runs and has said where."""
        urls = {int(pid): url for pid, url in SERVER_AT.findall(self.log)}
        children = _children()
        found = []
        for actor in _below(self.process.pid, children):
            if _command(actor).startswith(REPLICA) and actor in urls:
                for server in _below(actor, children):
                    if "-m winnow serve" in _command(server) and "leash" not in _command(server):
                        found.append(LiveReplica(actor, server, urls[actor]))
        return found

    def close(self) -> None:
        """Stops it as an operator would, and what is left of it by force."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        began = list(_below(self.process.pid, _children()))
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
        for pid in began:
            if self._folder.name in _command(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._reader.join(PATIENCE_S)
        self._folder.cleanup()


def until(what: Callable[[], T | None], patience_s: float = PATIENCE_S) -> T:
    """Returns what it returns as soon as that is something."""
    deadline_s = time.monotonic() + patience_s
    while not (found := what()):
        assert time.monotonic() < deadline_s, f"in vain for {patience_s:g} s"
        time.sleep(0.1)
    return found


def alive(pid: int) -> bool:
    """Whether the process runs; one that only waits to be buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _children() -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    return children


def _below(pid: int, children: dict[int, list[int]]) -> Iterator[int]:
    for child in children.get(pid, ()):
        yield child
        yield from _below(child, children)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""

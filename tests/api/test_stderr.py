"""api.stderr, and a server whose log is on a full disk."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from api import stderr
from tests.api.engine_process import engine_pid
from tests.api.scripted_engine import MODEL
from tests.api.server_process import ROOT

PATIENCE_S = 120
FULL = "/dev/full"


def test_what_can_be_written_is(capsys: pytest.CaptureFixture[str]) -> None:
    stderr.tell("a line")
    stderr.let_go()
    assert capsys.readouterr().err == "a line\n"


def test_what_cannot_be_written_is_lost() -> None:
    code = "from api import stderr; stderr.tell('a line'); stderr.let_go()"
    with open(FULL, "w") as full:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=full, check=False)
    assert done.returncode == 0


@pytest.mark.check
@pytest.mark.parametrize("processes", [1, 2])
def test_a_server_whose_log_cannot_be_written(random_model: Path, processes: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    options = ["--model", str(random_model), "--port", str(port), "--kv-cache-bytes", "8MiB"]
    options += ["--threads", "1", "--api-server-count", str(processes)]
    with open(FULL, "w") as full:
        server = subprocess.Popen(
            [sys.executable, "winnow.py", "serve", *options], cwd=ROOT, stderr=full
        )
    try:
        first = wait_until_answered(url)
        assert first["usage"]["completion_tokens"] == 3
        engine = engine_pid(server.pid)
        assert engine is not None
        os.kill(engine, signal.SIGKILL)
        while engine_pid(server.pid) in (None, engine):
            assert server.poll() is None
            time.sleep(0.05)
        assert wait_until_answered(url)["usage"]["completion_tokens"] == 3
    finally:
        server.send_signal(signal.SIGTERM)
        status = server.wait(PATIENCE_S)
    assert status == 0


def wait_until_answered(url: str) -> dict[str, dict[str, int]]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
    body |= {"ignore_eos": True}
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=PATIENCE_S)
        except httpx.TransportError:
            answer = None
        if answer is not None and answer.status_code == 200:
            found: dict[str, dict[str, int]] = answer.json()
            return found
        time.sleep(0.1)
    raise AssertionError("no answer")

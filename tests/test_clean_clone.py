"""A new user: a clone of what is committed, `make serve` from nothing, a question, an answer."""

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

ROOT = Path(__file__).parents[1]
QUESTION = {
    "model": "deepseek-v3.2-tiny",
    "messages": [{"role": "user", "content": "Hello!"}],
    "temperature": 0,
}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def seconds_to_the_first_answer(folder: Path) -> float:
    """Runs `make serve` in `folder` until it has answered; what `make` printed is shown."""
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    began = time.monotonic()
    server = subprocess.Popen(
        ["make", "serve", f"PORT={port}", f"PYTHON={sys.executable}"],
        cwd=folder,
        env=environment,
        start_new_session=True,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            while True:
                assert server.poll() is None, "make serve ended by itself"
                try:
                    answer = client.post("/v1/chat/completions", json=QUESTION)
                except httpx.ConnectError:
                    time.sleep(0.05)  # the port is not open yet, and nothing announces it
                    continue
                if answer.status_code != 503:  # loading
                    break
                time.sleep(0.05)
        elapsed = time.monotonic() - began
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"]
        return elapsed
    finally:
        os.killpg(server.pid, signal.SIGINT)
        server.wait(timeout=60)


@pytest.mark.check
@pytest.mark.timeout(1800)
def test_a_clean_clone_serves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clone = tmp_path / "winnow"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    first = seconds_to_the_first_answer(clone)
    second = seconds_to_the_first_answer(clone)
    with capsys.disabled():
        print(
            f"\nmake serve to the first answer: {first:.1f} s from nothing, {second:.1f} s set up"
        )
    assert second < first

"""A server as it stands in a cluster: HTTPS, keys that change, JSON logs, a drain at the end."""

from __future__ import annotations

import json
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import winnow
from tests.api.scripted_engine import MODEL
from tests.api.server_process import ServerProcess

PATIENCE_S = 120
LONG_S = 600.0
"""A drain that ends because a second signal comes, not because of its time."""
BODY: Any = {"model": MODEL, "messages": [{"role": "user", "content": "tell-no-one"}]}


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A file with a certificate of 127.0.0.1 and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    file = tmp_path / "server.pem"
    made = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        f"-subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 -keyout {file}.key -out {file}"
    )
    subprocess.run(made.split(), check=True, capture_output=True)
    file.write_text(file.read_text() + Path(f"{file}.key").read_text())
    return file


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_server_in_a_cluster(
    start_server: Callable[..., ServerProcess], certificate: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("first\n")
    options = ["--ssl-certfile", str(certificate), "--api-key-file", str(keys)]
    options += ["--log-format", "json", "--drain-delay-s", str(LONG_S), "--kv-cache-bytes", "8MiB"]
    server = start_server(*options)
    assert server.url.startswith("https://")
    trust = ssl.create_default_context(cafile=str(certificate))
    with httpx.Client(base_url=server.url, verify=trust, timeout=PATIENCE_S) as client:

        def status(key: str, path: str = "/v1/models") -> int:
            return client.get(path, headers={"authorization": f"Bearer {key}"}).status_code

        assert (status("first"), status("second")) == (200, 401)
        # Another file in its place: read at once when told, and unusable ones not at all.
        keys.write_text("second\n")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: status("second") == 200)
        assert status("first") == 401
        keys.write_text("\n")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "stay as they were" in server.log)
        assert status("second") == 200

        server.process.send_signal(signal.SIGTERM)
        until(lambda: client.get("/ready").status_code == 503)
        assert client.get("/ready").json()["error"]["code"] == "stopping"
        # Balancers have not noticed yet: on a new connection, too.
        with httpx.Client(base_url=server.url, verify=trust, timeout=PATIENCE_S) as another:
            headers = {"authorization": "Bearer second"}
            answer = another.post(
                "/v1/chat/completions", json=BODY | {"max_tokens": 2}, headers=headers
            )
            assert answer.status_code == 200
        assert client.get("/health").status_code == 200
    assert server.close() == 0, "the second signal ends the wait"

    lines = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
    requests = [line for line in lines if line["logger"] == "winnow.access"]
    (chat,) = [line for line in requests if line["path"] == "/v1/chat/completions"]
    assert (chat["status"], chat["answer_id"]) == (200, answer.headers["x-request-id"])
    assert {line["status"] for line in requests} >= {200, 401, 503}
    assert "tell-no-one" not in server.log and "Bearer" not in server.log


def test_certificates_that_cannot_be_used_are_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, random_model: Path
) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    for file in (broken, tmp_path / "missing.pem"):
        options = ["--model", str(random_model), "--port", "0", "--ssl-certfile", str(file)]
        assert winnow.main(["serve", *options]) == 1
        assert str(file) in capsys.readouterr().err

"""Every client in its own environment against a live server; run by `make check`.

Scripts say what the model says (tests/clients/server.py), so that the API is tested and not the
model's skill; each client also asks the embedded checkpoint.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.server_process import ServerProcess

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WANT_OPENAI_2 = ("instructor", "litellm")
CLIENTS = sorted(file.stem.removeprefix("client_") for file in HERE.glob("client_*.py"))
PATIENCE_S = 1200

pytestmark = [pytest.mark.check, pytest.mark.timeout(PATIENCE_S)]


@pytest.fixture(scope="module")
def scripted_url() -> Iterator[str]:
    """The address of a server whose model plays scripts."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.clients.server"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    with server.stdout:
        url = server.stdout.readline().strip()
        assert url, "the scripted server did not start"
        yield url
        server.terminate()
        server.wait(timeout=60)


@pytest.fixture(scope="module")
def embedded_url() -> Iterator[str]:
    """The address of a server with the embedded checkpoint."""
    server = ServerProcess()
    yield server.url
    assert server.close() == 0


def run(client: str, url: str, model: str, select: str) -> None:
    """Runs a client's tests with its own packages; fails with what they print."""
    venv = ".venv-clients-openai2" if client in WANT_OPENAI_2 else ".venv-clients"
    python = ROOT / venv / "bin" / "python"
    assert python.exists(), f"{python} is missing; `make check` makes it"
    environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    done = subprocess.run(
        [
            *(python, "-m", "pytest", HERE / f"client_{client}.py", "-k", select),
            *("-q", "-c", "/dev/null", "--rootdir", HERE, "--confcutdir", HERE),
            *("-p", "no:cacheprovider", "--timeout", "300"),
        ],
        env=environment | {"WINNOW_URL": url, "WINNOW_MODEL": model},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_plays_its_script(scripted_url: str, client: str) -> None:
    run(client, scripted_url, "deepseek-v3.2", "not embedded")


@pytest.mark.parametrize("client", [name for name in CLIENTS if name != "schemathesis"])
def test_a_client_asks_the_embedded_checkpoint(embedded_url: str, client: str) -> None:
    run(client, embedded_url, "deepseek-v3.2-tiny", "embedded")

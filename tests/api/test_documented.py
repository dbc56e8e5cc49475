"""docs/api.md: every example runs as it stands, against the embedded model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.api.server_process import ROOT, ServerProcess

ADDRESSES = ("http://127.0.0.1:8000", "localhost:8000")
EXAMPLES = re.findall(
    r"^```(python|bash)\n(.*?)^```$", (ROOT / "docs" / "api.md").read_text(), re.M | re.S
)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    server = ServerProcess()
    yield server
    assert server.close() == 0


def test_there_is_an_example_of_every_dialect() -> None:
    text = "\n".join(code for _, code in EXAMPLES)
    for call in ("chat/completions", "client.completions", "client.responses", "client.messages"):
        assert call in text


@pytest.mark.parametrize(("language", "code"), EXAMPLES)
def test_an_example(server: ServerProcess, language: str, code: str) -> None:
    for address in ADDRESSES:
        code = code.replace(address, server.url)
    command = [sys.executable, "-c"] if language == "python" else ["bash", "-ec"]
    run = subprocess.run(
        [*command, code], env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() and '"error"' not in run.stdout

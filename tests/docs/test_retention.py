"""The example of docs/retention.md runs as it stands, and prints what the page says it prints."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.server_process import ServerProcess

PAGE = Path(__file__).parents[2] / "docs" / "retention.md"
PORT = "http://localhost:8000"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    server = ServerProcess()
    yield server
    assert server.close() == 0


def test_the_example_runs_and_its_hits_only_grow(server: ServerProcess) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert PORT in example
    done = subprocess.run(
        [sys.executable, "-c", example.replace(PORT, server.url)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    lines = [re.fullmatch(r"(\d+) of (\d+)", line) for line in done.stdout.splitlines()]
    assert lines and all(lines)
    cached = [int(line[1]) for line in lines if line]
    assert cached == sorted(cached)

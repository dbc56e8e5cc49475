"""The README's Python examples run as they stand against the embedded model."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.server_process import ServerProcess

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
TWO_STEPS = (
    'find_city {"name": "Anna"} -> Paris',
    'get_weather {"city": "Paris"} -> rainy',
    "answers:",
)
PORT = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    server = ServerProcess()
    yield server
    assert server.close() == 0


def run(example: str, server: ServerProcess) -> str:
    assert PORT in example
    done = subprocess.run(
        [sys.executable, "-c", example.replace(PORT, server.url)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_question_is_answered_from_its_facts(server: ServerProcess) -> None:
    assert "Paris" in run(EXAMPLES[0], server)


def test_the_tool_loop_reasons_calls_reads_and_answers_in_two_steps(server: ServerProcess) -> None:
    said = run(EXAMPLES[1], server)
    places = [said.find(part) for part in TWO_STEPS]
    assert -1 not in places and places == sorted(places), said
    assert said.count("thinks:") == said.count("calls:") + 1 == 3
    assert "rainy" in said[said.index("answers:") :]

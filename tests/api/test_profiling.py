"""api.profiling: there only when asked for; what it answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.config import ServerConfig
from api.server import create_app
from engine.client import ConfigError, EngineDead
from engine.messages import Profiled
from tests.api.scripted_engine import Scripted


def ask(scripted: Scripted, query: str = "", **config: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        app = create_app(scripted.backend, ServerConfig(**config))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport) as client:
            return await client.post(f"http://winnow/debug/profile{query}")

    return asyncio.run(run())


class Profiling:
    """What the engine says to a request for a profile."""

    def __init__(self, answer: Profiled | Exception) -> None:
        self.answer = answer
        self.asked: list[tuple[int, str]] = []

    async def __call__(self, steps: int, file: str) -> Profiled:
        self.asked.append((steps, file))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_it_is_off_by_default(scripted: Scripted) -> None:
    assert ask(scripted).status_code == 404


def test_a_profile(scripted: Scripted, tmp_path: Path) -> None:
    profiling = Profiling(Profiled("/there/steps.json.gz", 3))
    scripted.engine.profile = profiling  # type: ignore[attr-defined]
    answer = ask(scripted, "?steps=3", profile_dir=str(tmp_path))
    assert answer.json() == {"file": "/there/steps.json.gz", "steps": 3}
    ((steps, file),) = profiling.asked
    assert steps == 3 and Path(file).parent == tmp_path and file.endswith(".json.gz")


@pytest.mark.parametrize("steps", ["0", "1001", "-1", "many", "1.5"])
def test_steps_out_of_range(scripted: Scripted, tmp_path: Path, steps: str) -> None:
    answer = ask(scripted, f"?steps={steps}", profile_dir=str(tmp_path))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "steps")


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (Profiled("", 2, "disk full"), 500, "profile_failed"),
        (ValueError("a profile is being taken"), 409, "profile_running"),
        (EngineDead("killed"), 503, "engine_dead"),
    ],
)
def test_failures(
    scripted: Scripted, tmp_path: Path, failure: Profiled | Exception, status: int, code: str
) -> None:
    scripted.engine.profile = Profiling(failure)  # type: ignore[attr-defined]
    answer = ask(scripted, profile_dir=str(tmp_path))
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_the_folder_must_exist(scripted: Scripted, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--profile-dir"):
        ask(scripted, profile_dir=str(tmp_path / "none"))

"""docs/examples/fewest_steps.py against a scripted model whose attempts take steps of their own."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from api.chat.encoding import Encoder
from api.config import ServerConfig
from api.server import create_app
from engine.hub import EMBEDDED_MODEL
from engine.messages import Submit
from tests.api.scripted_engine import MODEL, Scripted

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "fewest_steps.py"
CALL = (
    'hm</think>\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="find_city">\n'
    '<｜DSML｜parameter name="name" string="true">Anna</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
    "</｜DSML｜function_calls>"
)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fewest_steps", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def scripted() -> Scripted:
    return Scripted(Encoder.from_folder(EMBEDDED_MODEL))


def race(
    example: ModuleType, scripted: Scripted, steps_of: dict[int, int], **options: Any
) -> tuple[Any, list[dict[str, Any]]]:
    """Runs the example with a model whose attempt by seed takes that many steps."""
    called: list[dict[str, Any]] = []

    def script(submit: Submit, choice: int) -> list[int]:
        seed = submit.sampling.seed
        text = scripted.service.decode(submit.token_ids)
        done = text.partition("</functions>")[2].count("<result>")
        return scripted.tokens(CALL if done < steps_of[seed] else f"so</think>Answer {seed}")

    scripted.engine.script = script

    async def call_tool(name: str, arguments: dict[str, Any]) -> str:
        assert name == "find_city"
        called.append(arguments)
        return "Paris"

    async def run() -> Any:
        app = create_app(scripted.backend, ServerConfig())
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport) as http:
            client = AsyncOpenAI(base_url="http://winnow/v1", api_key="none", http_client=http)
            return await example.fewest_steps(
                client,
                [{"role": "user", "content": "In which city does Anna live?"}],
                call_tool,
                attempts=len(steps_of),
                model=MODEL,
                tools=example.TOOLS,
                reasoning_effort="high",
                **options,
            )

    return asyncio.run(run()), called


def test_the_fewest_steps_win(example: ModuleType, scripted: Scripted) -> None:
    best, called = race(example, scripted, {0: 4, 1: 2, 2: 3})
    assert (best.steps, best.answer) == (2, "Answer 1")
    assert called and all(call == {"name": "Anna"} for call in called)
    roles = [message["role"] for message in best.messages]
    assert roles == ["user", *["assistant", "tool"] * 2, "assistant"]
    assert best.messages[1]["reasoning_content"] == "hm"


def test_attempts_that_cannot_win_are_given_up(example: ModuleType, scripted: Scripted) -> None:
    best, called = race(example, scripted, {0: 50, 1: 0, 2: 50})
    assert (best.steps, best.answer) == (0, "Answer 1")
    assert len(called) < 10


def test_of_equals_the_first_wins(example: ModuleType, scripted: Scripted) -> None:
    best, _ = race(example, scripted, {7: 1, 8: 1}, seed=7)
    assert best.answer == "Answer 7"


def test_none_finishes_within_its_steps(example: ModuleType, scripted: Scripted) -> None:
    best, called = race(example, scripted, {0: 9, 1: 9}, most_steps=2)
    assert best is None and len(called) == 4

"""engine.profiling: one file per request, after the steps it asked for; and the client of it."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path

import pytest

from engine.client import EngineClient, EngineDead
from engine.messages import Profile, Profiled, Steps, Submit
from tests.engine.replica import prompt_of
from tests.engine.test_client import alone, config, read
from tests.engine.test_core import SHORT, Conversation


def test_the_next_steps_are_profiled_and_no_more(tmp_path: Path) -> None:
    talk = Conversation()
    file = tmp_path / "steps.json.gz"
    refused = Profile(1, str(tmp_path / "other"))
    talk.run(Profile(2, str(file)), refused, Submit("a", prompt_of(9), SHORT))
    answers = [message for message in talk.sent if isinstance(message, Profiled)]
    assert answers == [
        Profiled(refused.file, 0, "a profile is being taken"),
        Profiled(str(file), 2),
    ]
    names = {
        event.get("name") for event in json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    }
    assert any("aten::" in str(name) for name in names)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_file_that_cannot_be_written_is_an_answer(tmp_path: Path) -> None:
    talk = Conversation()
    talk.run(Profile(1, str(tmp_path / "no" / "folder.json")), Submit("a", prompt_of(9), SHORT))
    (answer,) = (message for message in talk.sent if isinstance(message, Profiled))
    assert answer.steps == 1 and answer.error
    assert {output.finish for output in talk.outputs if output.finish} == {"length"}


def test_a_client_asks_for_one_profile_at_a_time_and_hears_of_a_death(
    checkpoint: Path, tmp_path: Path
) -> None:
    async def scenario() -> None:
        client = await EngineClient.start(config(checkpoint))
        waiting = asyncio.create_task(client.profile(1000, str(tmp_path / "steps.json.gz")))
        await asyncio.sleep(0)
        with pytest.raises(ValueError, match="a profile is being taken"):
            await client.profile(1, "other")
        await client.close()
        assert (await waiting).error == client.death
        with pytest.raises(EngineDead):
            await client.profile(1, "other")

    alone(scenario())


def test_the_client_hands_on_what_the_steps_were(checkpoint: Path) -> None:
    async def scenario() -> None:
        client = await EngineClient.start(config(checkpoint))
        heard: asyncio.Queue[Steps] = asyncio.Queue()
        client.on_steps = heard.put_nowait
        async with await client.submit(Submit("a", prompt_of(9), SHORT)) as generation:
            await read(generation)
        sampled = 0
        while sampled < SHORT.max_tokens:
            for step in (await heard.get()).steps:
                sampled += step.first_tokens + sum(tokens for _, tokens in step.gaps)
                assert step.predicted_s > 0
        assert sampled == SHORT.max_tokens
        await client.close()

    alone(scenario())

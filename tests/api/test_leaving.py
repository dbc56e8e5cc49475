"""Clients behind a real socket that leave in the middle: every dialect frees all it holds."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from api.config import ServerConfig
from api.server import create_app
from tests.api.live_app import live
from tests.api.scripted_engine import MODEL, Scripted

DIALECTS: Any = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "n": 2}, 1),
    ("/v1/completions", {"prompt": ["a", "b", "c"], "n": 2}, 3),
    ("/v1/responses", {"input": "Hi"}, 1),
    ("/v1/messages", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}, 1),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "fields", "prompts"), DIALECTS)
def test_a_client_that_leaves_frees_everything(
    scripted: Scripted, path: str, fields: dict[str, Any], prompts: int, stream: bool
) -> None:
    engine = scripted.engine

    async def run() -> None:
        accepted, aborted = asyncio.Semaphore(0), asyncio.Semaphore(0)
        submit, abort = engine.submit, engine.abort

        async def counted_submit(message: Any) -> Any:
            accepted.release()
            return await submit(message)

        def counted_abort(request_id: str) -> None:
            abort(request_id)
            aborted.release()

        engine.submit, engine.abort = counted_submit, counted_abort  # type: ignore[method-assign]
        engine.gate.clear()
        body = {"model": MODEL, "stream": stream, **fields}
        async with (
            live(create_app(scripted.backend, ServerConfig())) as url,
            httpx.AsyncClient(base_url=url) as client,
        ):
            asked = asyncio.create_task(ask(client, path, body))
            for _ in range(prompts):
                await accepted.acquire()
            if stream:
                await asked  # the headers are here; the stream is left when the client goes
            else:
                asked.cancel()
            await client.aclose()
            for _ in range(prompts):
                await aborted.acquire()

    async def ask(client: httpx.AsyncClient, path: str, body: Any) -> None:
        request = client.build_request("POST", path, json=body)
        response = await client.send(request, stream=True)
        assert response.status_code == 200

    asyncio.run(run())
    assert engine.open == 0
    assert sorted(engine.aborts) == sorted(message.id for message in engine.submits)
    assert len(engine.submits) == prompts

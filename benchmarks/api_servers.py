"""The two servers that `winnow bench api` compares, each in a process of its own.

`python -m benchmarks.api_servers winnow` is the API over an engine that costs nothing: it hands out
one token of a fixed text per turn of the event loop. `… bare` is the least that streams the same
answers: an ASGI function under uvicorn that encodes ready chunks with msgspec.

The first line on stdout is the port. GET /usage says what the process has used; a request of
priority IDLE gets its headers and then nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec
import uvicorn

from api.backend import Backend
from api.chat.encoding import Encoder
from api.config import ServerConfig
from api.protection.guards import header_guard
from api.response import ChatCompletionChunk, ChunkChoice, Delta
from api.server import create_app
from api.service import ChatService
from api.sse import DONE, event
from benchmarks.server_usage import IDLE, MODEL, raise_file_limit, usage
from engine.client import GenerationDefaults
from engine.hub import EMBEDDED_MODEL
from engine.messages import Output, Ready, Snapshot, Submit

TEXT = "The wind takes the chaff and leaves the grain; "
WINDOW_TOKENS = 8192
PAGE_TOKENS = 64


class Body(msgspec.Struct):
    """What the bare server reads of a request."""

    max_tokens: int
    priority: int = 0


async def never() -> None:
    """Does not return."""
    await asyncio.Event().wait()


class Generation(AbstractAsyncContextManager["Generation"]):
    """A generation of `engine.client` whose tokens are known."""

    cached_tokens = 0

    def __init__(self, submit: Submit, token_ids: list[int]) -> None:
        self._submit = submit
        self._token_ids = token_ids

    async def __aexit__(self, *_: object) -> None:
        return None

    async def __aiter__(self) -> AsyncGenerator[list[Output], None]:
        if self._submit.priority == IDLE:
            await never()
        last = self._submit.sampling.max_tokens - 1
        for number in range(last + 1):
            await asyncio.sleep(0)
            token = self._token_ids[number % len(self._token_ids)]
            finish = "length" if number == last else None
            yield [Output(self._submit.id, 0, [token], None, finish)]  # type: ignore[arg-type]


class Engine:
    """The surface of EngineClient that a stream uses, without an engine."""

    death = None
    heard_s = 0.0
    alive = True

    def __init__(self, encoder: Encoder) -> None:
        self._token_ids = encoder.encode_text(TEXT)
        self._submits = 0
        self.ready = Ready(
            model_type="deepseek_v32",
            vocab_size=encoder.tokenizer.get_vocab_size(),
            max_model_len=WINDOW_TOKENS,
            page_tokens=PAGE_TOKENS,
            total_pages=2**20,
            memory={},
            device="none",
            dtype="none",
            pre_warms=False,
        )

    @property
    def snapshot(self) -> Snapshot:
        """Nothing waits, whatever was submitted."""
        return Snapshot(
            step=0,
            running=0,
            waiting=0,
            backlog_tokens=0,
            live_pages=0,
            idle_pages={},
            free_pages=self.ready.total_pages,
            total_pages=self.ready.total_pages,
            prefill_tokens_per_s=0.0,
            decode_tokens_per_s=0.0,
            preemptions=0,
            submits=self._submits,
        )

    async def submit(self, submit: Submit) -> Generation:
        self._submits += 1
        return Generation(submit, self._token_ids)

    def abort(self, request_id: str) -> None:
        """Changes nothing, as the next one: nothing is held."""

    def turn_ended(self, message: object) -> None:
        """Changes nothing."""


def winnow_app() -> Any:
    """Returns the API over an Engine."""
    encoder = Encoder.from_folder(EMBEDDED_MODEL)
    backend = Backend((MODEL,))
    engine: Any = Engine(encoder)
    backend.service = ChatService(engine, encoder, (MODEL,), GenerationDefaults())
    app = create_app(backend, ServerConfig())

    @app.get("/usage", include_in_schema=False)
    async def used() -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(usage())
        return found

    return app


def bare_app() -> Any:
    """Returns an ASGI application that streams the same chunks, and does nothing else."""
    encoder = Encoder.from_folder(EMBEDDED_MODEL)
    pieces = [encoder.tokenizer.decode([token]) for token in encoder.encode_text(TEXT)]
    decode = msgspec.json.Decoder(Body).decode

    async def events(tokens: int) -> AsyncGenerator[bytes, None]:
        created = int(time.time())
        for number in range(tokens):
            await asyncio.sleep(0)
            finish = "length" if number == tokens - 1 else None
            delta = Delta(content=pieces[number % len(pieces)])
            choice = ChunkChoice(0, delta, finish)  # type: ignore[arg-type]
            chunk = ChatCompletionChunk(
                id="chatcmpl-0123456789abcdef01234567",
                created=created,
                model=MODEL,
                system_fingerprint="fp_0123456789ab",
                choices=[choice],
            )
            yield event(chunk)
        yield DONE

    async def app(scope: Any, receive: Any, send: Any) -> None:
        kind = b"application/json" if scope["path"] == "/usage" else b"text/event-stream"
        headers = [(b"content-type", kind)]
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["path"] == "/usage":
            await send({"type": "http.response.body", "body": msgspec.json.encode(usage())})
            return
        wanted = decode(body)
        if wanted.priority == IDLE:
            await never()
        async for data in events(wanted.max_tokens):
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


def main() -> None:
    """Serves one of the two until it is told to stop."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("which", choices=("winnow", "bare"))
    which = parser.parse_args().which
    raise_file_limit()
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    settings: dict[str, Any] = {"log_level": "error", "access_log": False, "lifespan": "off"}
    if which == "winnow":
        config = ServerConfig()
        settings["http"] = header_guard(config.header_timeout_s)
        settings["h11_max_incomplete_event_size"] = config.max_header_bytes
    app = winnow_app() if which == "winnow" else bare_app()
    server = uvicorn.Server(uvicorn.Config(app, **settings))
    print(listener.getsockname()[1], flush=True)
    asyncio.run(server.serve(sockets=[listener]))


if __name__ == "__main__":
    main()

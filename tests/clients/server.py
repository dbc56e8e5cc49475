"""A live server whose model plays scripts: the API as it is, an engine that writes no nonsense.

Run as `python -m tests.clients.server`; the first line on stdout is its address. Beside the API,
GET /prompts?since=N lists the prompts and answers of the requests from number N on.

The engine checks its own script against the request's grammar, as a model under the grammar could
not break it, and finds prefixes in the cache as the real one does: whole pages of 64 tokens.
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from api.backend import Backend
from api.chat.detokenizer import Detokenizer, TokenBytes
from api.chat.encoding import Encoder
from api.config import ServerConfig
from api.listening import listen
from api.protection.guards import header_guard
from api.server import create_app
from api.service import ChatService
from engine.client import EngineRefused, GenerationDefaults
from engine.grammar import GrammarCompiler
from engine.hub import EMBEDDED_MODEL
from engine.messages import Refused, Submit
from tests.api.grammar import grammars
from tests.api.scripted_engine import ScriptedEngine, ScriptedGeneration
from tests.clients.script import step_for

NAMES = ("deepseek-v3.2", "deepseek-chat", "deepseek-reasoner")
PAGE_TOKENS = 64
STEP_TOKENS = 3


class PlayingEngine(ScriptedEngine):
    """Answers every prompt with its script's step, and remembers what it was asked."""

    def __init__(self, encoder: Encoder, folder: Path) -> None:
        size = encoder.tokenizer.get_vocab_size()
        super().__init__(self._play, vocab_size=size, max_model_len=131_072)
        self.step_tokens = STEP_TOKENS
        self.asked: list[dict[str, Any]] = []
        self._encoder = encoder
        self._bytes = TokenBytes(encoder.tokenizer)
        self._compiler = GrammarCompiler(folder, size, (encoder.eos_token_id,))
        self._pages: set[bytes] = set()

    async def submit(self, submit: Submit) -> ScriptedGeneration:
        answer = self._play(submit, 0)
        self._check_grammar(submit, answer)
        keys = self._keys(submit, submit.token_ids[:-1])
        hits = [key in self._pages for key in keys]
        self.cached_tokens = PAGE_TOKENS * ([*hits, False].index(False))
        self._pages.update(self._keys(submit, (submit.token_ids + answer)[:-1]))
        generation = await super().submit(submit)
        self.asked.append(
            {
                "prompt_token_ids": submit.token_ids,
                "token_ids": answer,
                "prompt": self._text(submit.token_ids),
                "cached_tokens": self.cached_tokens,
            }
        )
        return generation

    def _play(self, submit: Submit, choice: int) -> list[int]:
        step = step_for(self._text(submit.token_ids))
        text = step["say"]
        if step["calls"]:
            calls = [grammars.call(call["name"], call["arguments"]) for call in step["calls"]]
            text += grammars.block(*calls)
        if submit.token_ids[-1] == self._encoder.think_start_token_id:
            text = f"{step['think']}</think>{text}"
        ids = self._encoder.tokenizer.encode(text, add_special_tokens=False).ids
        answer: list[int] = [*ids, self._encoder.eos_token_id]
        return answer[: submit.sampling.max_tokens]

    def _check_grammar(self, submit: Submit, answer: list[int]) -> None:
        if submit.grammar is None:
            return
        matcher = self._compiler.compile(submit.grammar).matcher()
        for token in answer:
            if token != self._encoder.eos_token_id:
                matcher.advance(token)
            elif submit.grammar.required and not matcher.parser.is_accepting():
                matcher.fail("the answer ends too early")
        if matcher.error is not None:
            message = f"the script breaks the grammar: {matcher.error}\n{self._text(answer)}"
            raise EngineRefused(Refused(submit.id, 400, "script", message))

    def _keys(self, submit: Submit, ids: list[int]) -> list[bytes]:
        """The identity of every whole page: all that stands before it, and whose it is."""
        whole = hashlib.sha256(repr((submit.tenant, submit.cache_salt)).encode())
        keys = []
        for start in range(0, len(ids) // PAGE_TOKENS * PAGE_TOKENS, PAGE_TOKENS):
            whole.update(repr(ids[start : start + PAGE_TOKENS]).encode())
            keys.append(whole.digest())
        return keys

    def _text(self, ids: list[int]) -> str:
        detokenizer = Detokenizer(self._bytes)
        return detokenizer.feed(ids) + detokenizer.finish()


def playing_app() -> FastAPI:
    """Returns the application over a PlayingEngine with the embedded checkpoint's tokenizer."""
    encoder = Encoder.from_folder(EMBEDDED_MODEL)
    engine = PlayingEngine(encoder, EMBEDDED_MODEL)
    backend = Backend(NAMES)
    backend.service = ChatService(engine, encoder, NAMES, GenerationDefaults())  # type: ignore[arg-type]
    app = create_app(backend, ServerConfig())

    @app.get("/prompts", include_in_schema=False)
    async def prompts(since: int = 0) -> list[dict[str, Any]]:
        return engine.asked[since:]

    return app


def main() -> None:
    """Serves until it is told to stop."""
    config = ServerConfig(port=0)
    listener = listen(config.host, config.port)
    server = uvicorn.Server(
        uvicorn.Config(
            playing_app(),
            http=header_guard(config.header_timeout_s),
            h11_max_incomplete_event_size=config.max_header_bytes,
            log_level="error",
            lifespan="off",
        )
    )
    print(f"http://{config.host}:{listener.getsockname()[1]}", flush=True)
    asyncio.run(server.serve(sockets=[listener]))


if __name__ == "__main__":
    main()

"""An EngineClient whose tokens are written down: the API's tests say what the model says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any

import msgspec

from api.backend import Backend
from api.chat.encoding import Encoder
from api.service import ChatService
from engine.client import EngineDead, EngineRefused, GenerationDefaults
from engine.messages import Output, Ready, Refused, Submit, TokenLogprobs, TurnEnded

MODEL = "deepseek-random"

Script = Callable[[Submit, int], list[int]]
"""(request, choice) -> the tokens of that choice; without a stop token the last one is a cut."""


class ScriptedGeneration:
    """Yields a script `step_tokens` at a time, all choices in turn, as the engine would."""

    def __init__(self, engine: ScriptedEngine, submit: Submit) -> None:
        self.cached_tokens = engine.cached_tokens
        self._engine = engine
        self._submit = submit
        self._finished = 0
        self.stopped: set[int] = set()

    async def __aenter__(self) -> ScriptedGeneration:
        self._engine.open += 1
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._engine.open -= 1
        if self._finished < self._submit.n:
            self._engine.abort(self._submit.id)

    async def __aiter__(self) -> AsyncIterator[list[Output]]:
        engine, submit = self._engine, self._submit
        scripts = {choice: engine.script(submit, choice) for choice in range(submit.n)}
        start = 0
        while scripts:
            await engine.gate.wait()
            if engine.death is not None:
                raise EngineDead(engine.death)
            for choice, tokens in list(scripts.items()):
                stopped = choice in self.stopped
                news = [] if stopped else tokens[start : start + engine.step_tokens]
                finish = None
                if stopped or tokens[-1] in submit.sampling.stop_token_ids:
                    finish = "stop" if stopped or start + len(news) >= len(tokens) else None
                elif start + len(news) >= len(tokens):
                    finish = "length"
                if finish:
                    del scripts[choice]
                    self._finished += 1
                logprobs = [TokenLogprobs(-0.5, [(token, -0.5)]) for token in news]
                wanted = submit.sampling.logprobs is not None
                output = Output(submit.id, choice, news, logprobs if wanted else None, finish)  # type: ignore[arg-type]
                scored = submit.sampling.prompt_logprobs
                if scored is not None and choice == 0 and start == 0:
                    output = msgspec.structs.replace(
                        output, prompt_logprobs=prompt_scores(submit.token_ids, scored)
                    )
                yield [output]
            start += engine.step_tokens


def prompt_scores(token_ids: list[int], top: int) -> list[TokenLogprobs]:
    """What the scripted model says of a prompt: the n-th token is the (n + 1)-th most likely, and
    tokens 0, 1, ... are those most likely."""
    best = [(place, -0.25 * (place + 1)) for place in range(top)]
    return [
        TokenLogprobs(-1.0 * place, best, place + 1)
        for place, _ in enumerate(token_ids[1:], start=1)
    ]


class ScriptedEngine:
    """The surface of EngineClient that the API uses, with everything it was told on record."""

    def __init__(self, script: Script, *, vocab_size: int, max_model_len: int = 4096) -> None:
        self.script = script
        self.ready = Ready(
            model_type="deepseek_v32",
            vocab_size=vocab_size,
            max_model_len=max_model_len,
            page_tokens=64,
            total_pages=64,
            memory={"weights": 1},
            device="cpu",
            dtype="float32",
        )
        self.snapshot = None
        self.death: str | None = None
        self.cached_tokens = 0
        self.step_tokens = 1
        self.gate = asyncio.Event()
        self.gate.set()
        self.refusal: Refused | None = None
        self.open = 0
        self.submits: list[Submit] = []
        self.stops: list[tuple[str, int, int]] = []
        self.aborts: list[str] = []
        self.turns: list[TurnEnded] = []
        self._generations: dict[str, ScriptedGeneration] = {}

    @property
    def alive(self) -> bool:
        return self.death is None

    async def submit(self, submit: Submit) -> ScriptedGeneration:
        if self.death is not None:
            raise EngineDead(self.death)
        if self.refusal is not None:
            raise EngineRefused(self.refusal)
        self.submits.append(submit)
        generation = ScriptedGeneration(self, submit)
        self._generations[submit.id] = generation
        return generation

    def stop(self, request_id: str, choice: int, at_token: int) -> None:
        self.stops.append((request_id, choice, at_token))
        self._generations[request_id].stopped.add(choice)

    def abort(self, request_id: str) -> None:
        self.aborts.append(request_id)

    def turn_ended(self, message: TurnEnded) -> None:
        self.turns.append(message)

    async def close(self) -> None:
        self.death = "closed"


class Scripted:
    """A service whose model says `replies[choice]`, the last one for further choices."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.replies: list[str] = ["Hello!"]
        self.ends = True
        """Whether the model ends its answer; otherwise max_tokens does."""
        self.engine = ScriptedEngine(
            lambda _, choice: self.tokens(self.replies[min(choice, len(self.replies) - 1)]),
            vocab_size=encoder.tokenizer.get_vocab_size(),
        )
        self.service = ChatService(self.engine, encoder, (MODEL,), GenerationDefaults())  # type: ignore[arg-type]
        self.backend = Backend((MODEL,))
        self.backend.service = self.service

    def tokens(self, reply: str) -> list[int]:
        ids: list[int] = self.encoder.tokenizer.encode(reply, add_special_tokens=False).ids
        return [*ids, self.encoder.eos_token_id] if self.ends else ids

    async def complete(self, **fields: Any) -> dict[str, Any]:
        """Returns the whole answer to a request."""
        turn = await self.service.start(body(**fields))
        async with turn:
            answer: dict[str, Any] = msgspec.to_builtins(await turn.completion())
        return answer

    async def stream(self, **fields: Any) -> list[dict[str, Any]]:
        """Returns the chunks of the same answer, streamed."""
        turn = await self.service.start(body(stream=True, **fields))
        async with turn:
            return [msgspec.to_builtins(chunk) async for chunk in turn.chunks()]


def body(**fields: Any) -> bytes:
    """A request body: one user message, unless the fields say otherwise."""
    request = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
    return msgspec.json.encode(request | fields)

"""One accepted request on its way to the client: its prompts, their generations and choices."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from types import TracebackType
from typing import Generic, Literal, NamedTuple, Self, TypeVar

import msgspec
from msgspec import UNSET

from api.admission import Deadline
from api.chat.encoding import Prompt
from api.choice import Choice
from api.errors import ApiError, engine_is_dead
from api.generation_request import GenerationRequest
from api.logprobs import LogprobWriter
from api.merge import merged
from api.metrics.ended import Ended, Operation
from api.metrics.requests import Measured
from api.protection.limits import charge_tokens
from api.response import ChunkChoice, Usage
from engine.client import EngineClient, EngineDead, Generation
from engine.messages import Output, Span, TokenLogprobs, TurnEnded

R = TypeVar("R", bound=GenerationRequest)


class Part(NamedTuple):
    """One prompt of a request, and what answers it."""

    id: str
    """The engine's name for it."""
    prompt: Prompt
    generation: Generation
    choices: list[Choice]


class Turn(Generic[R]):
    """A running request. Leaving its context frees what it holds."""

    operation: Operation = "text_completion"

    def __init__(
        self,
        engine: EngineClient,
        turn_id: str,
        request: R,
        parts: Sequence[Part],
        system_fingerprint: str,
        deadline: Deadline | None = None,
        measured: Measured | None = None,
        logprobs: LogprobWriter | None = None,
    ) -> None:
        """parts: one per prompt; all of them together have dense choice indexes from 0. measured:
        is told how it goes; None: nobody counts. logprobs: writes those of prompts."""
        self.id = turn_id
        self.request = request
        self.created_s = int(time.time())
        self.parts = parts
        self.system_fingerprint = system_fingerprint
        self._engine = engine
        self._part = {part.id: part for part in parts}
        self._deadline = deadline
        self._measured = measured
        self.logprobs = logprobs
        self.prompt_logprobs: dict[str, list[TokenLogprobs]] = {}
        """By part, where they were asked for and are known: of every prompt token but the first."""
        self._generations = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        for part in self.parts:
            await self._generations.enter_async_context(part.generation)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            usage = self.usage
            charge_tokens(usage.total_tokens)
            self._measure_end(usage)
        finally:
            await self._generations.__aexit__(kind, error, traceback)

    @property
    def choices(self) -> Iterator[Choice]:
        """The choices of all prompts, in the order of their indexes."""
        return (choice for part in self.parts for choice in part.choices)

    @property
    def usage(self) -> Usage:
        """What was used so far; each prompt counts once, whatever the number of its choices."""
        choices = list(self.choices)
        usage = Usage.of(
            prompt=sum(len(part.prompt.token_ids) for part in self.parts),
            cached=sum(part.generation.cached_tokens for part in self.parts),
            completion=sum(choice.completion_tokens for choice in choices),
            reasoning=sum(choice.reasoning_tokens for choice in choices),
        )
        if self._measured is None:
            return usage
        cost = self._measured.cost(
            [
                (
                    len(part.prompt.token_ids),
                    part.generation.cached_tokens,
                    [choice.completion_tokens for choice in part.choices],
                )
                for part in self.parts
            ]
        )
        return usage if cost is UNSET else msgspec.structs.replace(usage, cost=cost)

    async def pieces(self) -> AsyncGenerator[ChunkChoice, None]:
        """Yields what the choices say, as it comes; the last piece of each has a finish_reason.

        Raises ApiError when the engine fails on the way.
        """
        try:
            async with contextlib.aclosing(self._news()) as news:
                for piece in self._read_all(await self._first(news)):
                    yield piece
                async for outputs in news:
                    for piece in self._read_all(outputs):
                        yield piece
        except EngineDead as error:
            self._failed()
            raise engine_is_dead(error) from error

    def _news(self) -> AsyncGenerator[list[Output], None]:
        if len(self.parts) == 1:
            return self.parts[0].generation.__aiter__()
        return merged([part.generation for part in self.parts])

    async def _first(self, news: AsyncIterator[list[Output]]) -> list[Output]:
        """Returns the first outputs; raises ApiError when they come too late."""
        if self._deadline is None:
            return await anext(news, [])
        try:
            async with asyncio.timeout_at(self._deadline.at_s):
                return await anext(news, [])
        except TimeoutError:
            self._failed()
            raise self._deadline.missed() from None

    def _read_all(self, outputs: list[Output]) -> Iterator[ChunkChoice]:
        for output in outputs:  # one that failed takes nothing from those before it
            yield from self._read(output)

    def _read(self, output: Output) -> list[ChunkChoice]:
        part = self._part[output.id]
        choice = part.choices[output.choice]
        was_finished = choice.finish_reason is not None
        if output.prompt_logprobs is not None:
            self.prompt_logprobs[output.id] = output.prompt_logprobs
        if self._measured is not None and output.token_ids:
            self._measured.token()
        if output.finish in ("abort", "error") and not was_finished:
            self._failed()
            raise ApiError(500, "The engine gave up on this request.", code="engine_error")
        pieces = choice.feed(output)
        if choice.cut_at is not None and not was_finished and output.finish is None:
            self._engine.stop(output.id, output.choice, choice.cut_at)
        self._note(output, pieces)
        if output.finish is not None:
            self._end(part, output.choice)
        return pieces

    def _failed(self) -> None:
        if self._measured is not None:
            self._measured.failed = True

    def _measure_end(self, usage: Usage) -> None:
        if self._measured is not None:
            restored = usage.prompt_tokens_details.restored_reasoning_tokens
            self._measured.end(
                Ended(
                    self.operation,
                    self.id,
                    self.request.model,
                    self.request.sampling,
                    self.request.stream,
                    [len(part.prompt.token_ids) for part in self.parts],
                    [(choice.finish_reason, choice.completion_tokens) for choice in self.choices],
                    usage.prompt_tokens_details.cached_tokens,
                    usage.completion_tokens_details.reasoning_tokens,
                    0 if restored is UNSET else restored,
                )
            )

    def _note(self, output: Output, pieces: Sequence[ChunkChoice]) -> None:
        """Hears what was sampled, and what of it is handed out."""

    def _end(self, part: Part, place: int) -> None:
        """Tells the engine what has become of the part's choice at `place`: text only grows."""
        choice = part.choices[place]
        start = len(part.prompt.token_ids)
        generated = [Span(start, start + choice.completion_tokens, "stable")]
        cut = choice.finish_reason == "length"
        why: Literal["length", "answer"] = "length" if cut else "answer"
        self._engine.turn_ended(TurnEnded(part.id, place, why, [*part.prompt.spans, *generated]))

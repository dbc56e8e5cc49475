"""One accepted request on its way to the client: as chunks, or as one answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from types import TracebackType
from typing import Literal

import msgspec
from msgspec import UNSET

from api.admission import Deadline
from api.chat.encoding import Prompt
from api.chat_request import ChatRequest
from api.choice import Choice, join_logprobs
from api.errors import ApiError
from api.next_turn import TurnEnds
from api.response import (
    AssistantMessage,
    ChatCompletion,
    ChatCompletionChunk,
    ChunkChoice,
    CompletionChoice,
    Delta,
    FunctionResult,
    ToolCallResult,
    Usage,
)
from engine.client import EngineClient, EngineDead, Generation
from engine.messages import Output, Span, TurnEnded


def engine_is_dead(reason: object) -> ApiError:
    """A 503: the engine's process is gone, nothing here can bring it back."""
    return ApiError(503, f"The engine died: {reason}", code="engine_dead", retry_after=30)


class ChatTurn:
    """A running generation and its choices. Leaving its context frees what the request holds."""

    def __init__(
        self,
        engine: EngineClient,
        generation: Generation,
        request_id: str,
        request: ChatRequest,
        prompt: Prompt,
        choices: Sequence[Choice],
        system_fingerprint: str,
        turn_ends: TurnEnds,
        deadline: Deadline | None = None,
    ) -> None:
        self.id = request_id
        self.request = request
        self.created_s = int(time.time())
        self._engine = engine
        self._generation = generation
        self._prompt = prompt
        self._choices = choices
        self._system_fingerprint = system_fingerprint
        self._turn_ends = turn_ends
        self._deadline = deadline
        self._answer: list[str] = []
        """The visible text so far, when there is one choice: the next turn will hold it."""

    async def __aenter__(self) -> ChatTurn:
        await self._generation.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._generation.__aexit__(kind, error, traceback)

    @property
    def usage(self) -> Usage:
        return Usage.of(
            prompt=len(self._prompt.token_ids),
            cached=self._generation.cached_tokens,
            completion=sum(choice.completion_tokens for choice in self._choices),
            reasoning=sum(choice.reasoning_tokens for choice in self._choices),
        )

    async def chunks(self) -> AsyncGenerator[ChatCompletionChunk, None]:
        """Yields the stream: every choice's role in index order, its pieces, usage if asked for.

        Raises ApiError when the engine fails on the way.
        """
        for choice in self._choices:
            yield self._chunk([ChunkChoice(choice.index, Delta(role="assistant", content=""))])
        async for piece in self.pieces():
            yield self._chunk([piece])
        if self.request.include_usage:
            yield msgspec.structs.replace(self._chunk([]), usage=self.usage)

    async def completion(self) -> ChatCompletion:
        """Returns the whole answer. Raises ApiError when the engine fails on the way."""
        pieces: list[list[ChunkChoice]] = [[] for _ in self._choices]
        async for piece in self.pieces():
            pieces[piece.index].append(piece)
        return ChatCompletion(
            id=self.id,
            created=self.created_s,
            model=self.request.model,
            system_fingerprint=self._system_fingerprint,
            choices=[
                _whole(own, choice.complete_calls)
                for own, choice in zip(pieces, self._choices, strict=True)
            ],
            usage=self.usage,
        )

    def _chunk(self, choices: list[ChunkChoice]) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self.id,
            created=self.created_s,
            model=self.request.model,
            system_fingerprint=self._system_fingerprint,
            choices=choices,
            usage=None if self.request.include_usage else UNSET,
        )

    async def pieces(self) -> AsyncGenerator[ChunkChoice, None]:
        """Yields what the choices say, as it comes; the last piece of each has a finish_reason.

        Raises ApiError when the engine fails on the way.
        """
        try:
            news = aiter(self._generation)
            outputs = await self._first(news)
            while outputs:
                for output in outputs:
                    for piece in self._read(output):
                        yield piece
                outputs = await anext(news, [])
        except EngineDead as error:
            raise engine_is_dead(error) from error

    async def _first(self, news: AsyncIterator[list[Output]]) -> list[Output]:
        """Returns the first outputs; raises ApiError when they come too late."""
        if self._deadline is None:
            return await anext(news, [])
        try:
            async with asyncio.timeout_at(self._deadline.at_s):
                return await anext(news, [])
        except TimeoutError:
            raise self._deadline.missed() from None

    def _read(self, output: Output) -> list[ChunkChoice]:
        choice = self._choices[output.choice]
        was_finished = choice.finish_reason is not None
        if not was_finished and output.finish in ("abort", "error"):
            raise ApiError(500, "The engine gave up on this request.", code="engine_error")
        pieces = choice.feed(output)
        if choice.cut_at is not None and not was_finished and output.finish is None:
            self._engine.stop(self.id, choice.index, choice.cut_at)
        if len(self._choices) == 1 and self._prompt.in_reasoning:
            self._answer += (p.delta.content for p in pieces if isinstance(p.delta.content, str))
        if output.finish is not None:
            self._end(choice)
        return pieces

    def _end(self, choice: Choice) -> None:
        """Tells what has become of the choice, and what the next user message will find.

        Several choices have no next turn yet: nobody knows which of them will be taken up.
        """
        ended = self._turn_ended(choice)
        answered = ended.why == "answer" and len(self._choices) == 1 and self._prompt.in_reasoning
        answer = "".join(self._answer) if answered and not choice.complete_calls else None
        self._turn_ends.tell(ended, self._prompt, self.request.messages, answer)

    def _turn_ended(self, choice: Choice) -> TurnEnded:
        why: Literal["tool_calls", "length", "answer"] = "answer"
        if choice.finish_reason in ("tool_calls", "length"):
            why = choice.finish_reason
        start = len(self._prompt.token_ids)
        answer = start + choice.reasoning_tokens
        end = start + choice.completion_tokens
        # What follows an open <think> flips with the next user message; the rest only grows.
        if not self._prompt.in_reasoning:
            generated = [Span(start, end, "stable")]
        else:
            kind: Literal["tool", "answer"] = "tool" if choice.complete_calls else "answer"
            generated = [Span(start, answer, "reasoning"), Span(answer, end, kind)]
        spans = [*self._prompt.spans, *(span for span in generated if span.start < span.end)]
        return TurnEnded(self.id, choice.index, why, spans)


def _whole(pieces: Sequence[ChunkChoice], complete_calls: Sequence[int]) -> CompletionChoice:
    """Returns the choice whose pieces these are; calls the model did not complete are left out."""
    content: list[str] = []
    reasoning: list[str] = []
    names: dict[int, tuple[str, str]] = {}
    arguments: dict[int, list[str]] = {}
    for piece in pieces:
        delta = piece.delta
        if isinstance(delta.content, str):
            content.append(delta.content)
        if isinstance(delta.reasoning_content, str):
            reasoning.append(delta.reasoning_content)
        for call in delta.tool_calls or ():
            if isinstance(call.id, str) and isinstance(call.function.name, str):
                names[call.index] = (call.id, call.function.name)
            arguments.setdefault(call.index, []).append(call.function.arguments)
    calls = [
        ToolCallResult(
            id=names[index][0],
            function=FunctionResult(names[index][1], "".join(arguments[index])),
        )
        for index in complete_calls
    ]
    last = pieces[-1]
    assert last.finish_reason is not None
    text = "".join(content)
    return CompletionChoice(
        index=last.index,
        message=AssistantMessage(
            content=text if text or not calls else None,
            reasoning_content="".join(reasoning) if reasoning else UNSET,
            tool_calls=calls or UNSET,
        ),
        finish_reason=last.finish_reason,
        logprobs=join_logprobs(*(piece.logprobs for piece in pieces)),
        stop_reason=last.stop_reason,
        parse_error=last.parse_error,
        incomplete_reasoning=last.incomplete_reasoning,
    )

"""A chat completion on its way to the client: as chunks, or as one answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Literal, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from api.admission import Deadline
from api.chat.messages import Message
from api.chat_request import ChatRequest
from api.choice import Choice, join_logprobs, join_token_ids
from api.conversation.context_management import ContextReport
from api.conversation.next_turn import TurnEnds
from api.logprobs import LogprobWriter
from api.metrics.requests import Measured
from api.response import (
    AssistantMessage,
    ChatCompletion,
    ChatCompletionChunk,
    ChunkChoice,
    CompletionChoice,
    Delta,
    FunctionResult,
    PromptLogprobs,
    ToolCallResult,
    Usage,
)
from api.turn import Part, Turn
from engine.client import EngineClient
from engine.messages import Output, Span, TurnEnded
from scheduler.retention import flip_point


class Remember(Protocol):
    """Takes an answer with tool calls: as it was sent, and as it was sampled."""

    def __call__(
        self, *, said: AssistantMessage, token_ids: Sequence[int], reasoning_tokens: int
    ) -> None: ...


class ChatTurn(Turn[ChatRequest]):
    """A running answer to a conversation, which is its one prompt."""

    operation = "chat"

    def __init__(
        self,
        engine: EngineClient,
        turn_id: str,
        request: ChatRequest,
        part: Part,
        system_fingerprint: str,
        turn_ends: TurnEnds,
        deadline: Deadline | None = None,
        remember: Remember | None = None,
        measured: Measured | None = None,
        logprobs: LogprobWriter | None = None,
    ) -> None:
        """remember: is told of tool calls and their tokens; None: nobody wants to know."""
        super().__init__(
            engine, turn_id, request, [part], system_fingerprint, deadline, measured, logprobs
        )
        self._prompt = part.prompt
        self._choices = part.choices
        self._turn_ends = turn_ends
        self._flips = flip_point(part.prompt.spans) < len(part.prompt.token_ids)
        """The next user message will drop some of it."""
        self._answer: list[str] = []
        """The visible text so far, when there is one choice: the next turn will hold it."""
        self._remember = remember
        self._said: list[list[ChunkChoice]] = [[] for _ in part.choices]
        self._sampled: list[list[int]] = [[] for _ in part.choices]

    @property
    def usage(self) -> Usage:
        """What was used so far, and what was restored."""
        usage, restored = super().usage, self.request.restored_tokens
        if not restored:
            return usage
        details = msgspec.structs.replace(
            usage.prompt_tokens_details, restored_reasoning_tokens=restored
        )
        return msgspec.structs.replace(usage, prompt_tokens_details=details)

    @property
    def context_report(self) -> ContextReport | UnsetType:
        """What of the tool loop the model no longer sees, if the client asked for that."""
        if self.request.context_management is None:
            return UNSET
        return ContextReport(list(self.request.applied))

    @property
    def prompt_token_ids(self) -> list[int] | UnsetType:
        """The prompt's tokens, if the client wants them."""
        return self._prompt.token_ids if self.request.return_token_ids else UNSET

    async def chunks(self) -> AsyncGenerator[ChatCompletionChunk, None]:
        """Yields the stream: every choice's role in index order, its pieces, usage if asked for.

        Raises ApiError when the engine fails on the way.
        """
        for choice in self._choices:
            opening = [ChunkChoice(choice.index, Delta(role="assistant", content=""))]
            chunk = self._chunk(opening)
            if choice.index == 0:
                chunk = msgspec.structs.replace(
                    chunk,
                    prompt_token_ids=self.prompt_token_ids,
                    context_management=self.context_report,
                )
            yield chunk
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
            system_fingerprint=self.system_fingerprint,
            choices=[
                _whole(own, choice.complete_calls)
                for own, choice in zip(pieces, self._choices, strict=True)
            ],
            usage=self.usage,
            prompt_token_ids=self.prompt_token_ids,
            prompt_logprobs=await self._prompt_logprobs(),
            context_management=self.context_report,
        )

    async def _prompt_logprobs(self) -> PromptLogprobs | UnsetType:
        top, (part,) = self.request.prompt_logprobs, self.parts
        if top is None or self.logprobs is None:
            return UNSET
        found = self.prompt_logprobs.pop(part.id)
        # Of a long prompt that takes long enough to be felt by other streams.
        return await asyncio.to_thread(self.logprobs.prompt, part.prompt.token_ids, found, top)

    def _chunk(self, choices: list[ChunkChoice]) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self.id,
            created=self.created_s,
            model=self.request.model,
            system_fingerprint=self.system_fingerprint,
            choices=choices,
            usage=None if self.request.include_usage else UNSET,
        )

    def _note(self, output: Output, pieces: Sequence[ChunkChoice]) -> None:
        if self._remember is not None:
            self._sampled[output.choice] += output.token_ids
            for piece in pieces:
                self._said[piece.index].append(piece)
                if piece.finish_reason is not None:
                    self._keep_calls(self._choices[piece.index], self._remember)
        if self._flips and len(self._choices) == 1:
            self._answer += (p.delta.content for p in pieces if isinstance(p.delta.content, str))

    def _keep_calls(self, choice: Choice, remember: Remember) -> None:
        """Notes the answer's tokens for the prompts that will hold its calls."""
        if choice.complete_calls:
            remember(
                said=_whole(self._said[choice.index], choice.complete_calls).message,
                token_ids=self._sampled[choice.index][: choice.completion_tokens],
                reasoning_tokens=choice.reasoning_tokens,
            )

    def _end(self, part: Part, place: int) -> None:
        """Tells what has become of the choice, and what the next user message will find.

        Several choices have no next turn yet: nobody knows which of them will be taken up.
        """
        ended = self._turn_ended(place)
        history: Sequence[Message] = self.request.messages
        answer = None
        answered = ended.why == "answer" and not self._choices[place].complete_calls
        if self.request.applied or self.request.retention_markers is not None:
            # The next prompt holds what this one left out, or goes on with the turn.
            answered = False
        if answered and len(self._choices) == 1 and self._flips:
            answer = "".join(self._answer)
            if self.request.continues:
                *history, started = history
                answer = started.content + answer
        self._turn_ends.tell(ended, self._prompt, history, answer)

    def _turn_ended(self, place: int) -> TurnEnded:
        choice = self._choices[place]
        why: Literal["tool_calls", "length", "answer"] = "answer"
        if choice.finish_reason in ("tool_calls", "length"):
            why = choice.finish_reason
        elif self.request.retention_markers is not None:
            why = "tool_calls"  # perhaps: the client writes them in its own words
        start = len(self._prompt.token_ids)
        answer = start + choice.reasoning_tokens
        end = start + choice.completion_tokens
        # What follows an open <think> flips with the next user message; the rest only grows.
        if not self._flips:
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
        token_ids=join_token_ids(pieces),
    )

"""A finished or growing chat answer in the shape of Anthropic's Messages API."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from typing import Any, cast

import msgspec

from api.anthropic.schema import (
    Block,
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    ErrorBody,
    ErrorDetail,
    Event,
    InputJsonDelta,
    Message,
    MessageDelta,
    MessageStart,
    MessageStop,
    SignatureDelta,
    StopDelta,
    StopReason,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolUseBlock,
    Usage,
)
from api.chat_turn import ChatTurn
from api.errors import ApiError
from api.response import ChatCompletion, ChunkChoice, CompletionChoice
from api.response import Usage as ChatUsage

ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""`type` by status where it differs from invalid_request_error (4xx) and api_error (5xx)."""

_OF_MESSAGE = re.compile(
    r"^(messages\[\d+\])\.(?:reasoning_content|role|tool_call_id|tool_calls)\b.*"
)
"""What is a field of a message in a chat completion, and here a block of its content."""

BlockEvent = ContentBlockStart | ContentBlockDelta | ContentBlockStop


def message_of(completion: ChatCompletion) -> Message:
    """Returns the whole answer as a message."""
    (choice,) = completion.choices
    return Message(
        id=completion.id,
        model=completion.model,
        content=_blocks(choice, completion.id),
        stop_reason=_stop_reason(choice),
        stop_sequence=_stop_sequence(choice),
        usage=_usage(completion.usage),
        context_management=completion.context_management,
    )


def error_body(error: ApiError) -> ErrorBody:
    """Returns an error as Anthropic's clients know it; the field at fault goes to the message."""
    kind = ERROR_TYPES.get(
        error.status, "api_error" if error.status >= 500 else "invalid_request_error"
    )
    param = _OF_MESSAGE.sub(r"\1.content", error.param or "")
    message = f"{param}: {error.message}" if param else error.message
    return ErrorBody(ErrorDetail(kind, message))


async def events(turn: ChatTurn) -> AsyncGenerator[Event, None]:
    """Yields the stream of a turn: its start, every block in order, why it ended.

    Raises ApiError when the engine fails on the way.
    """
    yield MessageStart(
        Message(
            id=turn.id,
            model=turn.request.model,
            content=[],
            stop_reason=None,
            stop_sequence=None,
            usage=_usage(turn.usage),
            context_management=turn.context_report,
        )
    )
    blocks = Blocks(turn.id)
    async for piece in turn.pieces():
        for event in blocks.feed(piece):
            yield event
        if piece.finish_reason is not None:
            ended = StopDelta(_stop_reason(piece), _stop_sequence(piece))
            yield MessageDelta(ended, _usage(turn.usage))
    yield MessageStop()


class Blocks:
    """The content blocks of a stream: indexes dense from 0, one block open at a time."""

    def __init__(self, signature: str) -> None:
        self._signature = signature
        self._index = -1
        self._open: str | int | None = None
        """The open block: "thinking", "text", or the index of a call."""

    def feed(self, piece: ChunkChoice) -> list[BlockEvent]:
        """Returns the events of a piece; the last piece closes what is open."""
        events: list[BlockEvent] = []
        for kind, block, delta in _parts(piece):
            if kind != self._open:
                events += self._close()
                self._index, self._open = self._index + 1, kind
                events.append(ContentBlockStart(self._index, block))
            if delta is not None:
                events.append(ContentBlockDelta(self._index, delta))
        if piece.finish_reason is not None:
            events += self._close()
        return events

    def _close(self) -> list[BlockEvent]:
        events: list[BlockEvent] = []
        if self._open == "thinking":
            events.append(ContentBlockDelta(self._index, SignatureDelta(self._signature)))
        if self._open is not None:
            events.append(ContentBlockStop(self._index))
        self._open = None
        return events


Part = tuple[str | int, Block, TextDelta | ThinkingDelta | InputJsonDelta | None]


def _parts(piece: ChunkChoice) -> list[Part]:
    """What a piece adds: the kind of block, the block as it would start, and the addition."""
    delta = piece.delta
    found: list[Part] = []
    if isinstance(delta.reasoning_content, str) and delta.reasoning_content:
        added = ThinkingDelta(delta.reasoning_content)
        found.append(("thinking", ThinkingBlock("", ""), added))
    if isinstance(delta.content, str) and delta.content:
        found.append(("text", TextBlock(""), TextDelta(delta.content)))
    for call in delta.tool_calls or ():
        call_id = call.id if isinstance(call.id, str) else ""
        name = call.function.name if isinstance(call.function.name, str) else ""
        text = call.function.arguments
        block = ToolUseBlock(call_id, name, {})
        found.append((call.index, block, InputJsonDelta(text) if text else None))
    return found


def _blocks(choice: CompletionChoice, signature: str) -> list[Block]:
    message = choice.message
    blocks: list[Block] = []
    if isinstance(message.reasoning_content, str):
        blocks.append(ThinkingBlock(message.reasoning_content, signature))
    if message.content:
        blocks.append(TextBlock(message.content))
    for call in message.tool_calls or ():
        # As the model wrote them: read and written again, they could be nested too deeply for it.
        arguments = msgspec.Raw(call.function.arguments.encode())
        blocks.append(ToolUseBlock(call.id, call.function.name, cast(dict[str, Any], arguments)))
    return blocks


def _stop_reason(choice: CompletionChoice | ChunkChoice) -> StopReason:
    if _stop_sequence(choice) is not None:
        return "stop_sequence"
    reasons: dict[str, StopReason] = {"length": "max_tokens", "tool_calls": "tool_use"}
    return reasons.get(choice.finish_reason or "stop", "end_turn")


def _stop_sequence(choice: CompletionChoice | ChunkChoice) -> str | None:
    return choice.stop_reason if isinstance(choice.stop_reason, str) else None


def _usage(usage: ChatUsage) -> Usage:
    details = usage.prompt_tokens_details
    cached = details.cached_tokens
    return Usage(
        usage.prompt_tokens - cached,
        usage.completion_tokens,
        cached,
        restored_reasoning_tokens=details.restored_reasoning_tokens,
    )

"""A finished or growing chat answer in the shape of the Responses API."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec

from api.chat_turn import ChatTurn
from api.errors import ApiError
from api.responses.events import (
    Event,
    ResponseCompleted,
    ResponseCreated,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
)
from api.responses.items import Items
from api.responses.request import ResponseRequest
from api.responses.schema import FormatParam as Format
from api.responses.schema import (
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    ReasoningConfig,
    Response,
    ResponseError,
    ResponseUsage,
    TextConfig,
)


class ResponseTurn:
    """A turn as a response. The whole answer is the one in the stream's last event."""

    def __init__(self, turn: ChatTurn) -> None:
        assert isinstance(turn.request, ResponseRequest)
        self._turn = turn
        (choice,) = turn.choices
        self._items = Items(turn.id.partition("_")[2], choice)
        self._start = msgspec.structs.replace(
            _started(turn.id, turn.created_s, turn.request),
            context_management=turn.context_report,
        )
        self._next_number = 0

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yields the stream: its start, every item in order, why it ended.

        Raises ApiError when the engine fails on the way.
        """
        yield self._numbered(ResponseCreated(response=self._start))
        yield self._numbered(ResponseInProgress(response=self._start))
        async for piece in self._turn.pieces():
            for event in self._items.feed(piece):
                yield self._numbered(event)
            if piece.finish_reason is not None:
                yield self._numbered(self._ended(piece.finish_reason == "length"))

    async def response(self) -> Response:
        """Returns the whole answer. Raises ApiError when the engine fails on the way."""
        response = self._start
        async for event in self.events():
            if isinstance(event, ResponseCompleted | ResponseIncomplete):
                response = event.response
        return response

    def failed(self, error: ApiError) -> ResponseFailed:
        """Returns the last event of a stream that failed."""
        response = msgspec.structs.replace(
            self._start,
            status="failed",
            error=ResponseError(error.message),
            output=self._items.done,
        )
        return ResponseFailed(response=response, sequence_number=self._next_number)

    def _ended(self, cut: bool) -> ResponseCompleted | ResponseIncomplete:
        usage = self._turn.usage
        response = msgspec.structs.replace(
            self._start,
            status="incomplete" if cut else "completed",
            incomplete_details=IncompleteDetails("max_output_tokens") if cut else None,
            output=self._items.done,
            usage=ResponseUsage(
                input_tokens=usage.prompt_tokens,
                input_tokens_details=InputTokensDetails(
                    usage.prompt_tokens_details.cached_tokens,
                    restored_reasoning_tokens=usage.prompt_tokens_details.restored_reasoning_tokens,
                ),
                output_tokens=usage.completion_tokens,
                output_tokens_details=OutputTokensDetails(
                    usage.completion_tokens_details.reasoning_tokens
                ),
                total_tokens=usage.total_tokens,
            ),
        )
        if cut:
            return ResponseIncomplete(response=response)
        return ResponseCompleted(response=response)

    def _numbered(self, event: Event) -> Event:
        number = self._next_number
        self._next_number += 1
        return msgspec.structs.replace(event, sequence_number=number)


def _started(response_id: str, created_s: int, request: ResponseRequest) -> Response:
    """Returns the answer before its first token."""
    sent = request.sent
    function = {"description": None, "parameters": None, "strict": None}
    return Response(
        id=response_id,
        created_at=created_s,
        status="in_progress",
        model=request.model,
        instructions=sent.instructions,
        max_output_tokens=sent.max_output_tokens,
        temperature=request.sampling.temperature,
        top_p=request.sampling.top_p,
        top_logprobs=request.sampling.logprobs or 0,
        parallel_tool_calls=not request.one_call,
        tools=[{**function, **tool} for tool in sent.tools or ()],
        tool_choice=sent.tool_choice or "auto",
        text=TextConfig((sent.text and sent.text.format) or Format("text")),
        reasoning=sent.reasoning or ReasoningConfig(),
        metadata=sent.metadata or {},
        user=sent.user,
    )

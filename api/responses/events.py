"""The events of a streamed response, each named by its tag.

Source: OpenAI API reference, "Streaming events" of the Responses API.
"""

from __future__ import annotations

import msgspec

from api.response import TokenLogprob
from api.responses.schema import Item, Part, Response


class StreamEvent(msgspec.Struct, frozen=True, kw_only=True):
    sequence_number: int = 0
    """Counts the events of a stream from 0."""


class ResponseCreated(StreamEvent, frozen=True, kw_only=True, tag="response.created"):
    response: Response


class ResponseInProgress(StreamEvent, frozen=True, kw_only=True, tag="response.in_progress"):
    response: Response


class ResponseCompleted(StreamEvent, frozen=True, kw_only=True, tag="response.completed"):
    response: Response


class ResponseIncomplete(StreamEvent, frozen=True, kw_only=True, tag="response.incomplete"):
    response: Response


class ResponseFailed(StreamEvent, frozen=True, kw_only=True, tag="response.failed"):
    response: Response


class ItemAdded(StreamEvent, frozen=True, kw_only=True, tag="response.output_item.added"):
    output_index: int
    item: Item


class ItemDone(StreamEvent, frozen=True, kw_only=True, tag="response.output_item.done"):
    output_index: int
    item: Item


class ItemEvent(StreamEvent, frozen=True, kw_only=True):
    """Of something inside an item."""

    item_id: str
    output_index: int


class PartAdded(ItemEvent, frozen=True, kw_only=True, tag="response.content_part.added"):
    content_index: int = 0
    part: Part


class PartDone(ItemEvent, frozen=True, kw_only=True, tag="response.content_part.done"):
    content_index: int = 0
    part: Part


class TextDelta(ItemEvent, frozen=True, kw_only=True, tag="response.output_text.delta"):
    content_index: int = 0
    delta: str
    logprobs: list[TokenLogprob]


class TextDone(ItemEvent, frozen=True, kw_only=True, tag="response.output_text.done"):
    content_index: int = 0
    text: str
    logprobs: list[TokenLogprob]


class ReasoningDelta(ItemEvent, frozen=True, kw_only=True, tag="response.reasoning_text.delta"):
    content_index: int = 0
    delta: str


class ReasoningDone(ItemEvent, frozen=True, kw_only=True, tag="response.reasoning_text.done"):
    content_index: int = 0
    text: str


class ArgumentsDelta(
    ItemEvent, frozen=True, kw_only=True, tag="response.function_call_arguments.delta"
):
    delta: str


class ArgumentsDone(
    ItemEvent, frozen=True, kw_only=True, tag="response.function_call_arguments.done"
):
    name: str
    arguments: str


Event = (
    ResponseCreated
    | ResponseInProgress
    | ResponseCompleted
    | ResponseIncomplete
    | ResponseFailed
    | ItemAdded
    | ItemDone
    | PartAdded
    | PartDone
    | TextDelta
    | TextDone
    | ReasoningDelta
    | ReasoningDone
    | ArgumentsDelta
    | ArgumentsDone
)

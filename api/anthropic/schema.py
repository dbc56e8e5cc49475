"""Anthropic's Messages API on the wire: the request, the answer, the stream's events.

Source: Anthropic API reference, "Messages", "Streaming Messages", "Count Message tokens".
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from api.conversation.context_management import ContextReport
from api.conversation.restoration import MissingReasoning
from api.conversation.simulated_tools import ThinkingRetention

# --- request ----------------------------------------------------------------------------------


class TextParam(msgspec.Struct, frozen=True, tag="text"):
    text: str


class ThinkingParam(msgspec.Struct, frozen=True, tag="thinking"):
    thinking: str
    signature: str | None = None
    """Given out with the block, and taken back whatever it is."""


class ToolUseParam(msgspec.Struct, frozen=True, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


class ToolResultParam(msgspec.Struct, frozen=True, tag="tool_result"):
    tool_use_id: str
    content: str | list[TextParam] | None = None
    is_error: bool | None = None


BlockParam = TextParam | ThinkingParam | ToolUseParam | ToolResultParam


class MessageParam(msgspec.Struct, frozen=True):
    role: Literal["user", "assistant"]
    content: str | list[BlockParam]


class ToolParam(msgspec.Struct, frozen=True):
    name: str
    input_schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None
    """Its input follows the schema exactly."""
    type: str | None = None
    """"custom" or nothing; everything else names a tool that Anthropic's servers run."""


class ToolChoiceParam(msgspec.Struct, frozen=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingConfig(msgspec.Struct, frozen=True):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None


class Metadata(msgspec.Struct, frozen=True):
    user_id: str | None = None


class OutputFormat(msgspec.Struct, frozen=True):
    """The text of the answer follows the schema to the letter."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, frozen=True):
    """V3.2 has no levels of effort, so `effort` changes nothing."""

    effort: str | None = None
    format: OutputFormat | None = None


class MessagesRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Field names and types of `POST /v1/messages`."""

    model: str
    messages: list[MessageParam]
    max_tokens: int
    system: str | list[TextParam] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    tools: list[ToolParam] | None = None
    tool_choice: ToolChoiceParam | None = None
    thinking: ThinkingConfig | None = None
    metadata: Metadata | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    """The older name of `output_config.format`."""

    # the extensions of chat completions
    missing_reasoning: MissingReasoning | None = None
    thinking_retention: ThinkingRetention | None = None
    retention_marker: str | list[str] | None = None
    context_management: dict[str, Any] | None = None
    """With a `strategy` as in a chat completion. Anthropic's own `edits` have no effect."""
    lenient_tool_calls: bool | None = None
    cache_salt: str | None = None
    priority: int | None = None


class CountTokensRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Field names and types of `POST /v1/messages/count_tokens`: what reaches the prompt."""

    model: str
    messages: list[MessageParam]
    system: str | list[TextParam] | None = None
    tools: list[ToolParam] | None = None
    tool_choice: ToolChoiceParam | None = None
    thinking: ThinkingConfig | None = None
    metadata: Metadata | None = None

    # whose reasoning is restored, and how, decides about the prompt, too
    missing_reasoning: MissingReasoning | None = None
    thinking_retention: ThinkingRetention | None = None
    retention_marker: str | list[str] | None = None
    cache_salt: str | None = None


HARMLESS = frozenset({"betas", "container", "inference_geo", "mcp_servers", "service_tier"})
"""Accepted without effect."""


# --- answer -----------------------------------------------------------------------------------

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class TextBlock(msgspec.Struct, frozen=True, tag="text"):
    text: str


class ThinkingBlock(msgspec.Struct, frozen=True, tag="thinking"):
    thinking: str
    signature: str


class ToolUseBlock(msgspec.Struct, frozen=True, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


Block = TextBlock | ThinkingBlock | ToolUseBlock


class Usage(msgspec.Struct, frozen=True):
    """input_tokens leaves out those that were read from the cache."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0
    """Nothing is billed for keeping a prefix."""
    restored_reasoning_tokens: int | UnsetType = UNSET
    """Extension: thinking of the running turn that the client did not send back; if any."""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[Block]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: Usage
    context_management: ContextReport | UnsetType = UNSET
    """Extension: what of the tool loop the model no longer sees, if that was asked for."""


class TokenCount(msgspec.Struct, frozen=True):
    input_tokens: int


# --- stream -----------------------------------------------------------------------------------


class TextDelta(msgspec.Struct, frozen=True, tag="text_delta"):
    text: str


class ThinkingDelta(msgspec.Struct, frozen=True, tag="thinking_delta"):
    thinking: str


class SignatureDelta(msgspec.Struct, frozen=True, tag="signature_delta"):
    signature: str


class InputJsonDelta(msgspec.Struct, frozen=True, tag="input_json_delta"):
    partial_json: str


class MessageStart(msgspec.Struct, frozen=True, tag="message_start"):
    message: Message


class ContentBlockStart(msgspec.Struct, frozen=True, tag="content_block_start"):
    index: int
    content_block: Block


class ContentBlockDelta(msgspec.Struct, frozen=True, tag="content_block_delta"):
    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta


class ContentBlockStop(msgspec.Struct, frozen=True, tag="content_block_stop"):
    index: int


class StopDelta(msgspec.Struct, frozen=True):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, frozen=True, tag="message_delta"):
    delta: StopDelta
    usage: Usage


class MessageStop(msgspec.Struct, frozen=True, tag="message_stop"):
    pass


Event = (
    MessageStart
    | ContentBlockStart
    | ContentBlockDelta
    | ContentBlockStop
    | MessageDelta
    | MessageStop
)


class ErrorDetail(msgspec.Struct, frozen=True):
    type: str
    message: str


class ErrorBody(msgspec.Struct, frozen=True, tag="error"):
    error: ErrorDetail

"""OpenAI's Responses API on the wire: the request and the answer.

The stateless part of it: nothing is stored, so the whole conversation comes with every request.

Source: OpenAI API reference, "Responses".
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from api.conversation.context_management import ContextManagement, ContextReport
from api.conversation.restoration import MissingReasoning
from api.conversation.simulated_tools import ThinkingRetention
from api.fields import GenerationFields
from api.response import TokenLogprob
from api.schema import KNOWN as CHAT_KNOWN
from api.schema import REFUSED as CHAT_REFUSED
from api.schema import ReasoningEffort, TemplateOptions, Thinking

# --- request ----------------------------------------------------------------------------------


class PartParam(msgspec.Struct, frozen=True):
    """A part of some content; those that are no text have other fields, and are refused."""

    type: str
    text: str | None = None
    refusal: str | None = None


class ItemParam(msgspec.Struct, frozen=True, kw_only=True):
    """One item of the input; `type` decides which fields mean something. Without one: a message."""

    type: str | None = None
    id: str | None = None
    status: str | None = None
    # message
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[PartParam] | None = None
    """Of a message or of a reasoning item."""
    # reasoning
    summary: list[dict[str, Any]] | None = None
    encrypted_content: str | None = None
    # function_call, function_call_output
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[PartParam] | None = None


class FormatParam(msgspec.Struct, frozen=True):
    type: Literal["text", "json_object", "json_schema"]
    name: str | UnsetType = UNSET
    schema: dict[str, Any] | UnsetType = UNSET
    strict: bool | UnsetType | None = UNSET
    description: str | UnsetType | None = UNSET


class TextConfig(msgspec.Struct, frozen=True):
    format: FormatParam | None = None
    verbosity: str | UnsetType | None = UNSET


class ReasoningConfig(msgspec.Struct, frozen=True):
    """V3.2 gives its reasoning whole, so `summary` asks for nothing more."""

    effort: ReasoningEffort | None = None
    summary: str | None = None
    generate_summary: str | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None


class ResponsesRequest(GenerationFields, frozen=True, kw_only=True):
    """Field names and types of `POST /v1/responses`."""

    input: str | list[ItemParam]
    instructions: str | None = None
    max_output_tokens: int | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None

    tools: list[dict[str, Any]] | None = None
    """Functions, in the flat form: type, name, description, parameters, strict."""
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None

    metadata: dict[str, str] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    user: str | None = None

    # the extensions of chat completions
    thinking: Thinking | None = None
    chat_template_kwargs: TemplateOptions | None = None
    thinking_token_budget: int | None = None
    missing_reasoning: MissingReasoning | None = None
    thinking_retention: ThinkingRetention | None = None
    retention_marker: str | list[str] | None = None
    context_management: ContextManagement | list[Any] | None = None
    """Winnow's, an object; OpenAI's own is a list, whose entries ask for what this server does not
    do. An empty one asks for nothing."""
    lenient_tool_calls: bool | None = None


KNOWN = frozenset(ResponsesRequest.__struct_fields__)

TRANSLATED = frozenset({"tools", "tool_choice", "top_logprobs"})
"""Fields that have the name of another in a chat completion, and another form."""
SAME = KNOWN.intersection(CHAT_KNOWN) - TRANSLATED
"""Fields that mean the same in a chat completion."""

INCLUDED_LOGPROBS = "message.output_text.logprobs"
INCLUDABLE = frozenset(
    {
        INCLUDED_LOGPROBS,
        "reasoning.encrypted_content",
        "code_interpreter_call.outputs",
        "computer_call_output.output.image_url",
        "file_search_call.results",
        "message.input_image.image_url",
        "web_search_call.action.sources",
        "web_search_call.results",
    }
)
"""What `include` may name; but for log-probabilities there is never anything of the kind."""

HARMLESS = frozenset(
    {
        "access_programs",
        "background_options",
        "max_tool_calls",
        "moderation",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "stream_options",
    }
)
"""Accepted without effect. Nothing is stored, whatever `store` says; the answer says so."""

REFUSED = frozenset(
    {
        "background",
        "conversation",
        "image",
        "previous_response_id",
        "prompt",
    }
)
"""Known, would change the answer, not honoured: 400 unless null, false or empty."""

OF_CHAT = (CHAT_KNOWN | CHAT_REFUSED) - KNOWN - HARMLESS - REFUSED
"""Fields of chat completions that have no place here: 400 unless they ask for nothing."""
OWN_NAMES = {
    "logprobs": 'include: ["message.output_text.logprobs"]',
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
}
"""What some of them are called here."""


# --- answer -----------------------------------------------------------------------------------

Status = Literal["in_progress", "completed", "incomplete"]


class OutputText(msgspec.Struct, frozen=True, tag="output_text"):
    text: str
    annotations: list[dict[str, Any]] = []
    logprobs: list[TokenLogprob] = []


class ReasoningText(msgspec.Struct, frozen=True, tag="reasoning_text"):
    text: str


Part = OutputText | ReasoningText


class ReasoningItem(msgspec.Struct, frozen=True, kw_only=True, tag="reasoning"):
    id: str
    summary: list[dict[str, Any]] = []
    content: list[ReasoningText]
    status: Status


class MessageItem(msgspec.Struct, frozen=True, kw_only=True, tag="message"):
    id: str
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]
    status: Status


class FunctionCallItem(msgspec.Struct, frozen=True, kw_only=True, tag="function_call"):
    """`incomplete`: the model did not write all of it; its arguments are no JSON document then."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


Item = ReasoningItem | MessageItem | FunctionCallItem


class InputTokensDetails(msgspec.Struct, frozen=True):
    cached_tokens: int
    cache_write_tokens: int = 0
    """Nothing is billed for keeping a prefix."""
    restored_reasoning_tokens: int | UnsetType = UNSET
    """Extension: reasoning of the running turn that the client did not send back; if any."""


class OutputTokensDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, frozen=True):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(msgspec.Struct, frozen=True):
    reason: Literal["max_output_tokens"]


class ResponseError(msgspec.Struct, frozen=True):
    message: str
    code: Literal["server_error"] = "server_error"


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """The answer, and the settings it came about with."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    model: str
    output: list[Item] = []
    usage: ResponseUsage | None = None

    instructions: str | None
    max_output_tokens: int | None
    temperature: float
    top_p: float
    top_logprobs: int
    parallel_tool_calls: bool
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    text: TextConfig
    reasoning: ReasoningConfig
    metadata: dict[str, str]
    user: str | None
    truncation: Literal["disabled"] = "disabled"
    previous_response_id: None = None
    background: Literal[False] = False
    store: Literal[False] = False
    context_management: ContextReport | UnsetType = UNSET
    """Extension: what of the tool loop the model no longer sees, if that was asked for."""

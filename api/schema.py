"""The chat-completions request on the wire.

What a field means, and which are refused, is decided in chat_request.py.

Source: OpenAI API reference, "Create chat completion", and the DeepSeek and vLLM extensions of it.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from api import fields
from api.conversation.context_management import ContextManagement
from api.conversation.restoration import MissingReasoning
from api.conversation.simulated_tools import ThinkingRetention
from api.fields import TextFields

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class FunctionCall(msgspec.Struct, frozen=True):
    name: str
    arguments: str | dict[str, Any] = "{}"
    """JSON text of an object; the object itself is accepted too."""


class ToolCallParam(msgspec.Struct, frozen=True):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class MessageParam(msgspec.Struct, frozen=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    """The same as reasoning_content under the name other servers use."""
    tool_calls: list[ToolCallParam] | None = None
    tool_call_id: str | None = None
    prefix: bool | None = None
    audio: Any = None
    function_call: Any = None


class Thinking(msgspec.Struct, frozen=True):
    type: Literal["enabled", "disabled"]
    budget_tokens: int | None = None
    """Reasoning tokens after which the model is made to answer."""


class TemplateOptions(msgspec.Struct, frozen=True):
    thinking: bool | None = None
    enable_thinking: bool | None = None


class ChatCompletionRequest(TextFields, frozen=True, kw_only=True):
    """Field names and types of `POST /v1/chat/completions`."""

    messages: list[MessageParam]

    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    tools: list[dict[str, Any]] | None = None
    """Kept as received: the inner objects become prompt text, key order included."""
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None

    # DeepSeek
    thinking: Thinking | None = None
    # Winnow
    missing_reasoning: MissingReasoning | None = None
    thinking_retention: ThinkingRetention | None = None
    retention_marker: str | list[str] | None = None
    context_management: ContextManagement | None = None
    lenient_tool_calls: bool | None = None
    # vLLM, SGLang
    chat_template_kwargs: TemplateOptions | None = None
    reasoning_effort: ReasoningEffort | None = None
    thinking_token_budget: int | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None

    modalities: list[str] | None = None


HARMLESS = frozenset(
    {
        "metadata",
        "moderation",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)
"""Accepted without effect: no answer would differ."""

REFUSED = fields.REFUSED | frozenset(
    {
        "audio",
        "chat_template",
        "documents",
        "echo",
        "function_call",
        "functions",
        "input_ids",
        "web_search_options",
    }
)
"""Known, would change the answer, not honoured: 400 unless null, false or empty; 0 is a value."""

KNOWN = frozenset(ChatCompletionRequest.__struct_fields__)

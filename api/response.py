"""The chat-completions answer on the wire: one object, or chunks.

UNSET fields are left out; None is sent as null. `finish_reason` takes OpenAI's values only.

Source: OpenAI API reference, "The chat completion object" and "The chat completion chunk object";
`reasoning_content` and the prompt_cache fields are DeepSeek's.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from api.conversation.context_management import ContextReport
from api.metrics.cost import RequestCost

FinishReason = Literal["stop", "length", "tool_calls"]


class TopLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(msgspec.Struct):
    """Entries of the tokens of `content` and of tool calls; those of the reasoning stand apart."""

    content: list[TokenLogprob] = []
    refusal: None = None
    reasoning_content: list[TokenLogprob] | UnsetType = UNSET


class PromptLogprob(msgspec.Struct, frozen=True):
    """Of one token at one place of the prompt; in vLLM's shape."""

    logprob: float
    rank: int
    """Its place by likelihood; 1 is the most likely token."""
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""Of every token of a prompt: token id -> the token's own, and those of the most likely ones. null
for the first, which has nothing before it."""


class FunctionDelta(msgspec.Struct, frozen=True):
    arguments: str
    name: str | UnsetType = UNSET


class ToolCallDelta(msgspec.Struct, frozen=True):
    """`id`, `type` and `name` come once per call; clients join what comes twice."""

    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class ParseError(msgspec.Struct, frozen=True):
    """Extension: why a tool call the model wrote could not be read; its text went to content."""

    reason: str
    offset: int


class Delta(msgspec.Struct, frozen=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True):
    index: int
    delta: Delta
    finish_reason: FinishReason | None = None
    logprobs: ChoiceLogprobs | None = None
    stop_reason: str | UnsetType = UNSET
    """Extension of vLLM: the stop string that ended the content."""
    parse_error: ParseError | UnsetType = UNSET
    incomplete_reasoning: bool | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    """Extension of vLLM: the tokens sampled since the piece before, those that end included."""


class PromptTokensDetails(msgspec.Struct, frozen=True):
    cached_tokens: int
    restored_reasoning_tokens: int | UnsetType = UNSET
    """Extension: reasoning of the running turn that the client did not send back; if any."""


class CompletionTokensDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Token counts of one request, all choices together.

    completion_tokens: every sampled token, </think>, markup of tool calls and the end-of-sentence
    token included. reasoning_tokens: those before </think>, which itself does not count.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails
    prompt_cache_hit_tokens: int
    prompt_cache_miss_tokens: int
    cost: RequestCost | UnsetType = UNSET
    """Extension, with --usage-cost: what the tokens cost by the cost model."""

    @classmethod
    def of(
        cls, prompt: int, cached: int, completion: int, reasoning: int, restored: int = 0
    ) -> Usage:
        return cls(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptTokensDetails(cached, restored or UNSET),
            completion_tokens_details=CompletionTokensDetails(reasoning),
            prompt_cache_hit_tokens=cached,
            prompt_cache_miss_tokens=prompt - cached,
        )


class ChatCompletionChunk(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    """Extension of vLLM, in the first chunk."""
    context_management: ContextReport | UnsetType = UNSET
    """Extension, in the first chunk: what of the tool loop the model no longer sees."""


class FunctionResult(msgspec.Struct, frozen=True):
    name: str
    arguments: str


class ToolCallResult(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: FunctionResult


class AssistantMessage(msgspec.Struct, frozen=True, kw_only=True):
    """`content` is null when there are calls and no text; empty `tool_calls` are left out."""

    role: Literal["assistant"] = "assistant"
    reasoning_content: str | UnsetType = UNSET
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCallResult] | UnsetType = UNSET


class CompletionChoice(msgspec.Struct, frozen=True):
    index: int
    message: AssistantMessage
    finish_reason: FinishReason
    logprobs: ChoiceLogprobs | None = None
    stop_reason: str | UnsetType = UNSET
    parse_error: ParseError | UnsetType = UNSET
    incomplete_reasoning: bool | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    context_management: ContextReport | UnsetType = UNSET


class Model(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "winnow"
    root: str
    max_model_len: int
    """Longest sequence, prompt and output, in tokens."""


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Model]

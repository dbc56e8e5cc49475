"""The completions dialect on the wire: the request, the answer, whole or in chunks.

Source: OpenAI API reference, "Completions", and the vLLM extensions of it.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from api.grammar.formats import ResponseFormat, StructuredOutputs
from api.response import Usage
from api.schema import StreamOptions

# --- request ----------------------------------------------------------------------------------


class CompletionsRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Field names and types of `POST /v1/completions`."""

    model: str
    prompt: str | list[str | int | list[int]]
    """A text, its token ids, or several of either kind: one kind per request."""

    max_tokens: int | None = None
    n: int | None = None
    best_of: int | None = None
    echo: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    # DeepSeek
    user_id: str | None = None
    # vLLM, SGLang
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    regex: str | None = None
    ebnf: str | None = None
    add_special_tokens: bool | None = None
    """Whether a text begins with the begin-of-sentence token; true when nothing is said."""
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None


HARMLESS = frozenset({"user"})
"""Accepted without effect."""

REFUSED = frozenset(
    {
        "include_stop_str_in_output",
        "prompt_embeds",
        "prompt_logprobs",
        "suffix",
        "truncate_prompt_tokens",
        "use_beam_search",
    }
)
"""Known, would change the answer, not honoured: 400 unless null, false or empty; 0 is a value."""

KNOWN = frozenset(CompletionsRequest.__struct_fields__)


# --- answer -----------------------------------------------------------------------------------


class TextLogprobs(msgspec.Struct, frozen=True):
    """Four lists of one length. A token that is no text by itself is written `bytes:\\xe2\\x80`."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    """The most likely tokens, and the sampled one."""
    text_offset: list[int]
    """Where each token's text begins in `text`, in characters."""


class TextChoice(msgspec.Struct, frozen=True, kw_only=True):
    """index: that of the prompt, times n, plus that among the prompt's choices."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None
    stop_reason: str | UnsetType = UNSET
    """Extension of vLLM: the stop string that ended the text."""
    token_ids: list[int] | UnsetType = UNSET
    """Extension of vLLM: the sampled tokens, those that end included; in a chunk, the new ones."""
    prompt_token_ids: list[int] | UnsetType = UNSET
    """Extension of vLLM; of a stream in the first chunk of a choice."""


class TextCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer, or one chunk of it: both have the same shape."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage | UnsetType | None = UNSET

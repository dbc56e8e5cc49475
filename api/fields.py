"""Fields that several dialects have on the wire, each said once.

    GenerationFields                 every dialect of OpenAI's
      TextFields                     those that give out text as it was sampled
        ChatCompletionRequest        api.schema
        CompletionsRequest           api.completions.schema
      ResponsesRequest               api.responses.schema

Optional fields may be null: clients that dump SDK objects send every field.
"""

from __future__ import annotations

from typing import Any

import msgspec

from api.grammar.formats import ResponseFormat, StructuredOutputs


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Accepted; nothing is padded."""


class GenerationFields(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are drawn, and for whom."""

    model: str
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None

    # DeepSeek
    user_id: str | None = None
    # vLLM, SGLang
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    priority: int | None = None
    cache_salt: str | None = None


class TextFields(GenerationFields, frozen=True, kw_only=True):
    """How tokens are drawn, what form they have, and what is said of them."""

    max_tokens: int | None = None
    n: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None

    # vLLM, SGLang
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    ignore_eos: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    regex: str | None = None
    ebnf: str | None = None
    prompt_logprobs: int | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None

"""Fields that several dialects have on the wire, each said once.

    GenerationFields                 every dialect of OpenAI's
      TextFields                     those of choices, which are completions of text
        ChatCompletionRequest        api.schema
        CompletionsRequest           api.completions.schema
      ResponsesRequest               api.responses.schema

Optional fields may be null: clients that dump SDK objects send every field.
"""

from __future__ import annotations

from typing import Any

import msgspec

from api.grammar.formats import ResponseFormat, StructuredOutputs

REFUSED = frozenset(
    {
        "custom_logit_processor",
        "custom_params",
        "include_stop_str_in_output",
        "logprob_token_ids",
        "lora_path",
        "no_stop_trim",
        "repetition_detection",
        "return_hidden_states",
        "return_prompt_text",
        "return_routed_experts",
        "return_sampling_mask",
        "stop_regex",
        "truncate_prompt_tokens",
        "use_beam_search",
    }
)
"""Extensions of vLLM and SGLang that would change the answer and are not honoured: 400 unless null,
false or empty; 0 is a value."""


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Accepted; nothing is padded."""


class GenerationFields(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are drawn, what form they have, and for whom."""

    model: str
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    # DeepSeek
    user_id: str | None = None
    # vLLM, SGLang
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    priority: int | None = None
    cache_salt: str | None = None
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


class TextFields(GenerationFields, frozen=True, kw_only=True):
    """How long and how many the choices are, and what is said of their tokens."""

    max_tokens: int | None = None
    n: int | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None

    # vLLM
    prompt_logprobs: int | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None

"""A completions request -> prompts that are not conversations, and how to go on from them.

No chat template is applied, and special strings in a text are text like any other: who wants
control tokens sends token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from api.chat_request import (
    MAX_CHOICES,
    GenerationRequest,
    ModelFacts,
    answer_format,
    checked_model,
    checked_stops,
    checked_user_id,
    read_fields,
    refuse_unhonoured,
    warn_of_unknown,
)
from api.completions.schema import HARMLESS, KNOWN, REFUSED, CompletionsRequest
from api.errors import from_validation, invalid, unsupported
from api.grammar.answers import AnswerDemand
from api.protection.limits import check_sizes
from api.sampling import MAX_TOP_LOGPROBS, read_sampling, within
from api.schema import ChatCompletionRequest
from engine.messages import Sampling

DEFAULT_MAX_TOKENS = 16
MAX_PROMPTS = 128
FORMATS = (
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "regex",
    "ebnf",
)
"""Fields that say what form the text has."""

Text = str | list[int]
"""A prompt: text, or the token ids it already is."""


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True):
    """A validated completions request."""

    prompts: list[Text]
    prompt_paths: tuple[str, ...]
    """Where each prompt stood in the request, for errors that name it."""
    echo: bool
    """The answer begins with the prompt."""
    bos: bool
    """Texts get a begin-of-sentence token in front; token ids never do."""


def read_completion_request(body: bytes, facts: ModelFacts) -> CompletionRequest:
    """Returns the request in `body`. Raises ApiError: 400 naming the field, 404 for the model."""
    fields = read_fields(body)
    try:
        request = msgspec.convert(fields, CompletionsRequest)
    except msgspec.ValidationError as error:
        raise from_validation(error) from error
    model = checked_model(request.model, facts)
    refuse_unhonoured(fields, REFUSED)
    warn_of_unknown(fields, KNOWN | HARMLESS | REFUSED)
    check_sizes(request.cache_salt, request.logit_bias, request.stop_token_ids)
    prompts, paths = _prompts(request.prompt, facts.vocab_size)
    n = within(1 if request.n is None else request.n, 1, MAX_CHOICES, "n")
    if request.best_of is not None and request.best_of != n:
        raise unsupported("best_of", "best_of other than n")
    if request.echo and request.logprobs is not None:
        raise unsupported("echo", "echo together with logprobs")
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options needs stream: true.", "stream_options")
    same = _same(request)
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    return CompletionRequest(
        model=model,
        prompts=prompts,
        prompt_paths=paths,
        echo=bool(request.echo),
        bos=request.add_special_tokens is not False,
        sampling=_sampling(same, facts),
        answer=AnswerDemand.of(None, answer_format(same)),
        n=n,
        stops=checked_stops(stops, "stop"),
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        return_token_ids=bool(request.return_token_ids),
        tokens_as_ids=bool(request.return_tokens_as_token_ids),
        tenant=checked_user_id(request.user_id, "user_id"),
        cache_salt=request.cache_salt or "",
        priority=within(request.priority or 0, -(2**31), 2**31 - 1, "priority"),
    )


def _prompts(
    prompt: str | Sequence[str | int | list[int]], vocab_size: int
) -> tuple[list[Text], tuple[str, ...]]:
    """Returns every prompt and where it stood."""
    if isinstance(prompt, str):
        return [prompt], ("prompt",)
    if not prompt:
        raise invalid("prompt must not be an empty list.", "prompt", "empty_array")
    if isinstance(prompt[0], int):
        return [checked_token_ids(prompt, vocab_size, "prompt")], ("prompt",)
    if len(prompt) > MAX_PROMPTS:
        raise invalid(f"{len(prompt)} prompts were given; the limit is {MAX_PROMPTS}.", "prompt")
    paths = tuple(f"prompt[{index}]" for index in range(len(prompt)))
    prompts: list[Text] = []
    for text, path in zip(prompt, paths, strict=True):
        if type(text) is not type(prompt[0]):
            raise _mixed(path)
        prompts.append(
            text if isinstance(text, str) else checked_token_ids(_ids(text, path), vocab_size, path)
        )
    return prompts, paths


def _ids(value: int | list[int], path: str) -> list[int]:
    if isinstance(value, int):
        raise _mixed(path)
    return value


def _mixed(path: str) -> Exception:
    return invalid("All prompts of a request must be of one kind.", path, "invalid_type")


def checked_token_ids(values: Sequence[Any], vocab_size: int, path: str) -> list[int]:
    """Returns the token ids of field `path`. Raises ApiError(400) for what is none, or for none."""
    if not values:
        raise invalid("A list of token ids must not be empty.", path, "empty_array")
    for index, value in enumerate(values):
        if not isinstance(value, int):
            raise _mixed(f"{path}[{index}]")
        if not 0 <= value < vocab_size:
            within(value, 0, vocab_size - 1, f"{path}[{index}]")
    return list(values)


def _same(request: CompletionsRequest) -> ChatCompletionRequest:
    """Returns the chat completion that draws its tokens in the same way."""
    if request.logprobs is not None:
        within(request.logprobs, 0, MAX_TOP_LOGPROBS, "logprobs")
    return ChatCompletionRequest(
        messages=[],
        model=request.model,
        max_tokens=DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        seed=request.seed,
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        repetition_penalty=request.repetition_penalty,
        logit_bias=request.logit_bias,
        logprobs=request.logprobs is not None,
        top_logprobs=request.logprobs,
        min_tokens=request.min_tokens,
        stop_token_ids=request.stop_token_ids,
        ignore_eos=request.ignore_eos,
        allowed_token_ids=request.allowed_token_ids,
        bad_words=request.bad_words,
        **{name: getattr(request, name) for name in FORMATS},
    )


def _sampling(same: ChatCompletionRequest, facts: ModelFacts) -> Sampling:
    return read_sampling(
        same,
        facts.defaults,
        vocab_size=facts.vocab_size,
        max_model_len=facts.max_model_len,
        end_token_ids=facts.end_token_ids,
        encode_text=facts.encode_text,
    )

"""A completions request -> prompts that are not conversations, and how to go on from them.

No chat template is applied, and special strings in a text are text like any other: who wants
control tokens sends token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from api.completions.schema import HARMLESS, KNOWN, REFUSED, CompletionsRequest
from api.errors import from_validation, invalid, unsupported
from api.facts import ModelFacts
from api.generation_request import (
    GenerationRequest,
    answer_format,
    checked_model,
    common_values,
    read_fields,
    refuse_unhonoured,
    warn_of_unknown,
)
from api.grammar.answers import AnswerDemand
from api.logprobs import check_prompt_entries
from api.sampling import MAX_TOP_LOGPROBS, checked_max_tokens, read_sampling, within
from engine.messages import Sampling

DEFAULT_MAX_TOKENS = 16
MAX_PROMPTS = 128
MAX_REPEATED = 4 * 2**20
"""Characters of prompts in one answer, over all choices: it is written by the loop that serves
everybody."""
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
    only_prompt: bool = False
    """The answer is the prompt alone (`max_tokens: 0`)."""
    echoes: list[str] = []
    """The text of each prompt that is to be repeated; set when the prompts are made."""


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
    prompts, paths = _prompts(request.prompt, facts.vocab_size)
    common = common_values(request)
    if request.best_of is not None and request.best_of != common["n"]:
        raise unsupported("best_of", "best_of other than n")
    echo = bool(request.echo)
    return CompletionRequest(
        model=model,
        prompts=prompts,
        prompt_paths=paths,
        echo=echo,
        bos=request.add_special_tokens is not False,
        only_prompt=echo and request.max_tokens == 0,
        sampling=_sampling(request, facts),
        answer=AnswerDemand.of(None, answer_format(request)),
        **common,
    )


def check_repeated(request: CompletionRequest, prompt_tokens: int) -> None:
    """Changes nothing; raises ApiError(400) naming the field that would have the answer repeat
    more of its prompts than anyone reads.

    prompt_tokens: of all prompts together. Every choice repeats its prompt.
    """
    n, tokens = request.n, request.n * prompt_tokens
    repeated = n * sum(map(len, request.echoes))
    if repeated > MAX_REPEATED:
        raise invalid(
            f"echo would repeat {repeated} characters of prompts; the limit is {MAX_REPEATED}.",
            "echo",
        )
    if request.return_token_ids and tokens > MAX_REPEATED // 8:
        raise invalid(
            f"return_token_ids would repeat {tokens} prompt tokens; the limit is "
            f"{MAX_REPEATED // 8}.",
            "return_token_ids",
        )
    if request.echo and request.sampling.logprobs is not None:
        check_prompt_entries(tokens, request.sampling.logprobs, "logprobs")
    if request.prompt_logprobs is not None:
        check_prompt_entries(tokens, request.prompt_logprobs, "prompt_logprobs")


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


def _sampling(request: CompletionsRequest, facts: ModelFacts) -> Sampling:
    logprobs = request.logprobs
    if logprobs is not None:
        within(logprobs, 0, MAX_TOP_LOGPROBS, "logprobs")
    max_tokens = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    if request.echo and max_tokens == 0:
        # The engine samples one token behind every prompt; nobody will see it.
        max_tokens = 1
    sampling = read_sampling(
        request,
        facts,
        max_tokens=checked_max_tokens({"max_tokens": max_tokens}, facts),
        logprobs=logprobs,
    )
    if not request.echo or logprobs is None:
        return sampling
    top = max(logprobs, sampling.prompt_logprobs or 0)
    return msgspec.structs.replace(sampling, prompt_logprobs=top)

"""Text or a conversation to token ids, and token ids to text, without an answer.

Source: vLLM's `/tokenize` and `/detokenize`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.params import Depends
from starlette.responses import Response

from api.backend import Backend
from api.chat_request import ChatRequest, chat_request_of
from api.completions.request import checked_token_ids
from api.config import ServerConfig
from api.conversation.restoration import MissingReasoning
from api.errors import from_validation, invalid
from api.exchange import JsonResponse, tenant_of
from api.facts import ModelFacts
from api.generation_request import (
    checked_model,
    nesting_refused,
    read_fields,
    warn_of_unknown,
)
from api.openapi import answers
from api.protection.body import read_body
from api.schema import MessageParam, TemplateOptions, Thinking
from api.service import ChatService


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A text (`prompt`) or a conversation (`messages`), with the fields that reach its prompt."""

    model: str | None = None
    prompt: str | None = None
    messages: list[MessageParam] | None = None
    add_special_tokens: bool | None = None
    """Whether a text begins with the begin-of-sentence token; true when nothing is said. A
    conversation always does."""
    return_token_strs: bool | None = None
    tools: list[dict[str, Any]] | None = None
    thinking: Thinking | None = None
    chat_template_kwargs: TemplateOptions | None = None
    missing_reasoning: MissingReasoning | None = None
    user_id: str | None = None
    cache_salt: str | None = None
    """With `user_id`, whose conversation it is: so reasoning that was lost is restored as there."""
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """token_strs: the text of each token; null unless it was asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    model: str | None = None
    tokens: list[int]


class Detokenized(msgspec.Struct, frozen=True):
    prompt: str


_OF_CONVERSATION = (
    *("messages", "tools", "thinking", "chat_template_kwargs"),
    *("missing_reasoning", "user_id", "cache_salt"),
)
_OF_ITS_END = ("continue_final_message", "add_generation_prompt")


def tokenise(service: ChatService, body: bytes, tenant: str = "") -> Tokens:
    """Returns the tokens of what is in `body`. Raises ApiError: 400 naming the field, or 404.

    tenant: whose reasoning a conversation may get back, by the API key.
    """
    fields = read_fields(body)
    try:
        with nesting_refused():
            request = msgspec.convert(fields, TokenizeRequest)
    except msgspec.ValidationError as error:
        raise from_validation(error) from error
    warn_of_unknown(fields, frozenset(TokenizeRequest.__struct_fields__))
    _check_model(request.model, service)
    if (request.prompt is None) == (request.messages is None):
        raise invalid("Either prompt or messages must be given.", "prompt")
    if request.prompt is not None:
        bos = request.add_special_tokens is not False
        prompt = service.encode_raw(request.prompt, "prompt", bos=bos)
    else:
        _, prompt = service.prepare(body, _read_conversation, tenant)
    strings = None
    if request.return_token_strs:
        strings = [service.decode([token_id]) for token_id in prompt.token_ids]
    return Tokens(
        count=len(prompt.token_ids),
        max_model_len=service.facts.max_model_len,
        tokens=prompt.token_ids,
        token_strs=strings,
    )


def detokenise(service: ChatService, body: bytes) -> Detokenized:
    """Returns the text of the tokens in `body`. Raises ApiError: 400 naming the field, or 404.

    Bytes that are no text become U+FFFD; ids beyond the vocabulary of the text have none.
    """
    fields = read_fields(body)
    try:
        request = msgspec.convert(fields, DetokenizeRequest)
    except msgspec.ValidationError as error:
        raise from_validation(error) from error
    _check_model(request.model, service)
    tokens = request.tokens
    if len(tokens) > service.facts.max_model_len:
        raise invalid(
            f"{len(tokens)} tokens were given; the window has {service.facts.max_model_len}.",
            "tokens",
            "context_length_exceeded",
        )
    if tokens:
        checked_token_ids(tokens, service.facts.vocab_size, "tokens")
    return Detokenized(service.decode(tokens))


def _check_model(name: str | None, service: ChatService) -> None:
    if name is not None:
        checked_model(name, service.facts)


def _read_conversation(body: bytes, facts: ModelFacts) -> ChatRequest:
    fields = read_fields(body)
    kept = {name: fields[name] for name in (*_OF_CONVERSATION, *_OF_ITS_END) if name in fields}
    return chat_request_of({"model": facts.names[0], **kept}, facts)


def add_tokenise(
    app: FastAPI, backend: Backend, config: ServerConfig, dependencies: Sequence[Depends]
) -> None:
    """Adds the routes; dependencies: what is checked before a request is read."""

    @answers(Tokens, to=TokenizeRequest)
    async def tokenize(request: Request) -> Response:
        """The tokens of a text, or of the prompt that a conversation becomes."""
        service = backend.require()
        body = await read_body(request, config.max_body_bytes)
        return JsonResponse(await asyncio.to_thread(tokenise, service, body, tenant_of(request)))

    @answers(Detokenized, to=DetokenizeRequest)
    async def detokenize(request: Request) -> Response:
        """The text of tokens, special strings included."""
        service = backend.require()
        body = await read_body(request, config.max_body_bytes)
        return JsonResponse(await asyncio.to_thread(detokenise, service, body))

    for base in ("", "/v1"):
        app.post(f"{base}/tokenize", dependencies=dependencies)(tokenize)
        app.post(f"{base}/detokenize", dependencies=dependencies)(detokenize)

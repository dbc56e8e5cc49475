"""The routes of Anthropic's Messages API, at its own paths and below /anthropic."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi.params import Depends
from starlette.responses import Response

from api.anthropic.request import read_count_request, read_messages_request
from api.anthropic.response import error_body, events, message_of
from api.anthropic.schema import (
    CountTokensRequest,
    Event,
    Message,
    MessagesRequest,
    TokenCount,
)
from api.backend import Backend
from api.config import ServerConfig
from api.exchange import JsonResponse, deadline_s_of, priority_of, tenant_of, unless_disconnected
from api.openapi import answers
from api.protection.body import read_body
from api.sse import EventStream, Wire, named_event

PATHS = ("/v1/messages", "/anthropic/v1/messages")

WIRE = Wire(named_event, error_body, b"")


def speaks_messages(path: str) -> bool:
    """Returns whether errors at `path` are to be those of the Messages API."""
    return path.startswith(PATHS)


def add_messages(
    app: FastAPI, backend: Backend, config: ServerConfig, dependencies: Sequence[Depends]
) -> None:
    """Adds the routes; dependencies: what is checked before a request is read."""

    @answers(Message, to=MessagesRequest, streamed=Event)
    async def messages(request: Request) -> Response:
        """Anthropic messages, streamed or not."""
        service = backend.require()
        body = await read_body(request, config.max_body_bytes)
        work = service.start(
            body,
            read=read_messages_request,
            id_prefix="msg_",
            tenant=tenant_of(request),
            deadline_s=deadline_s_of(request),
            priority=priority_of(request, config),
        )
        turn = await unless_disconnected(request, work)
        headers = {"request-id": turn.id}
        if turn.request.stream:
            return EventStream(
                turn, lambda: events(turn), headers, keep_alive_s=config.keep_alive_s, wire=WIRE
            )
        async with turn:
            answer = await unless_disconnected(request, turn.completion())
        return JsonResponse(message_of(answer), headers=headers)

    @answers(TokenCount, to=CountTokensRequest)
    async def count_tokens(request: Request) -> Response:
        """The tokens of a prompt that is not answered."""
        service = backend.require()
        body = await read_body(request, config.max_body_bytes)
        _, prompt = await asyncio.to_thread(
            service.prepare, body, read_count_request, tenant_of(request)
        )
        return JsonResponse(TokenCount(len(prompt.token_ids)))

    for path in PATHS:
        app.post(path, dependencies=dependencies)(messages)
        app.post(f"{path}/count_tokens", dependencies=dependencies)(count_tokens)

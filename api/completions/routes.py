"""The route of text completions."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi.params import Depends
from starlette.responses import Response

from api.backend import Backend
from api.completions.response import chunks, completion
from api.completions.schema import CompletionsRequest, TextCompletion
from api.config import ServerConfig
from api.exchange import JsonResponse, deadline_s_of, priority_of, tenant_of, unless_disconnected
from api.openapi import answers
from api.protection.body import read_body
from api.sse import EventStream

PATHS = ("/v1/completions", "/beta/completions")


def add_completions(
    app: FastAPI, backend: Backend, config: ServerConfig, dependencies: Sequence[Depends]
) -> None:
    """Adds the routes; dependencies: what is checked before a request is read."""

    @answers(TextCompletion, to=CompletionsRequest, streamed=TextCompletion)
    async def completions(request: Request) -> Response:
        """OpenAI text completions of one or several prompts, streamed or not."""
        service = backend.require()
        body = await read_body(request, config.max_body_bytes)
        work = service.start_completion(
            body,
            tenant=tenant_of(request),
            deadline_s=deadline_s_of(request),
            priority=priority_of(request, config),
        )
        turn = await unless_disconnected(request, work)
        headers = {"x-request-id": turn.id}
        if turn.request.stream:
            return EventStream(
                turn,
                lambda: chunks(turn),
                headers,
                keep_alive_s=config.keep_alive_s,
            )
        async with turn:
            answer = await unless_disconnected(request, completion(turn))
        return JsonResponse(answer, headers=headers)

    for path in PATHS:
        app.post(path, dependencies=dependencies)(completions)

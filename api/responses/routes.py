"""The route of OpenAI's Responses API."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi.params import Depends
from starlette.responses import Response

from api.backend import Backend
from api.config import ServerConfig
from api.errors import ApiError
from api.exchange import JsonResponse, deadline_s_of, priority_of, tenant_of, unless_disconnected
from api.openapi import answers
from api.protection.body import read_body
from api.responses import schema
from api.responses.events import Event
from api.responses.request import name_as_sent, read_responses_request
from api.responses.response import ResponseTurn
from api.sse import EventStream, Wire, named_event


def add_responses(
    app: FastAPI, backend: Backend, config: ServerConfig, dependencies: Sequence[Depends]
) -> None:
    """Adds the route; dependencies: what is checked before a request is read."""

    @app.post("/v1/responses", dependencies=dependencies)
    @answers(schema.Response, to=schema.ResponsesRequest, streamed=Event)
    async def responses(request: Request) -> Response:
        """OpenAI responses, streamed or not. Nothing is stored."""
        service = backend.require()
        body = await read_body(request, config.max_body_bytes)
        work = service.start(
            body,
            read=read_responses_request,
            id_prefix="resp_",
            tenant=tenant_of(request),
            deadline_s=deadline_s_of(request),
            priority=priority_of(request, config),
        )
        try:
            turn = await unless_disconnected(request, work)
        except ApiError as error:
            name_as_sent(error)
            raise
        headers = {"x-request-id": turn.id}
        response = ResponseTurn(turn)
        if turn.request.stream:
            return EventStream(
                turn,
                response.events,
                headers,
                keep_alive_s=config.keep_alive_s,
                wire=Wire(named_event, response.failed, b""),
            )
        async with turn:
            answer = await unless_disconnected(request, response.response())
        return JsonResponse(answer, headers=headers)

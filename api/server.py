"""The HTTP routes: bodies in, answers and streams out. What they mean is decided elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from api.anthropic.response import error_body
from api.anthropic.routes import add_messages, speaks_messages
from api.anthropic.schema import ErrorBody as MessagesError
from api.backend import Backend
from api.completions.routes import add_completions
from api.config import ServerConfig
from api.errors import ApiError, ErrorBody, from_status
from api.exchange import JsonResponse, deadline_s_of, priority_of, tenant_of, unless_disconnected
from api.logs import RequestLog
from api.metrics.exposition import PATH as METRICS_PATH
from api.metrics.exposition import Exposition
from api.metrics.http import UNCOUNTED, HttpMeter
from api.metrics.requests import RequestCounts
from api.openapi import answers, publish
from api.profiling import add_profiler
from api.protection.body import read_body
from api.protection.guards import BodyGuard
from api.protection.keys import KeyFile, KeyLimits
from api.protection.limits import Usage, key_check
from api.response import ChatCompletion, ChatCompletionChunk, Model, ModelList
from api.responses.routes import add_responses
from api.schema import ChatCompletionRequest
from api.sse import EventStream, StraightSend
from api.tokenise import add_tokenise
from api.version import version

CHAT_PATHS = ("/v1/chat/completions", "/chat/completions", "/beta/chat/completions")
"""DeepSeek's clients need no /v1, and ask below /beta for prefixes and strict tools."""
DESCRIPTION = (
    "DeepSeek-V3.2 in the dialects of OpenAI, DeepSeek and Anthropic. A streamed answer sends the "
    "messages shown for text/event-stream, one per event; a stream that fails ends in an event "
    "that holds an error of the route's shape."
)
CLIENT_CLOSED_REQUEST = 499
"""Nobody reads it; it is for the access log."""


def create_app(backend: Backend, config: ServerConfig) -> FastAPI:
    """Returns the application. Raises ConfigError for an unusable --api-key-file."""
    app = FastAPI(title="Winnow", version=version(), redoc_url=None, redirect_slashes=False)
    publish(app, DESCRIPTION, _error_at)
    _answer_errors(app, backend.metrics.requests)
    keyed = []
    if config.api_key_file is not None:
        limits = KeyLimits(config.max_requests_per_key, config.max_tokens_per_minute_per_key)
        app.state.keys = KeyFile(config.api_key_file, limits)
        keyed.append(Depends(key_check(app.state.keys, Usage())))
    # Pure ASGI, the last one outermost: nothing may stand between a stream and its socket.
    app.add_middleware(BodyGuard, body_timeout_s=config.body_timeout_s)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "request-id", "retry-after", "retry-after-ms"],
        )
    app.add_middleware(RequestLog)
    app.add_middleware(HttpMeter, counts=backend.metrics.http)
    app.add_middleware(StraightSend)

    @answers(ChatCompletion, to=ChatCompletionRequest, streamed=ChatCompletionChunk)
    async def chat_completions(request: Request) -> Response:
        """OpenAI chat completions, streamed or not."""
        service = backend.require()
        body = await read_body(request, config.max_body_bytes)
        work = service.start(
            body,
            tenant=tenant_of(request),
            deadline_s=deadline_s_of(request),
            priority=priority_of(request, config),
        )
        turn = await unless_disconnected(request, work)
        headers = {"x-request-id": turn.id}
        if turn.request.stream:
            return EventStream(turn, turn.chunks, headers, keep_alive_s=config.keep_alive_s)
        async with turn:
            answer = await unless_disconnected(request, turn.completion())
        return JsonResponse(answer, headers=headers)

    for path in CHAT_PATHS:
        app.post(path, dependencies=keyed)(chat_completions)
    add_completions(app, backend, config, keyed)
    add_messages(app, backend, config, keyed)
    add_responses(app, backend, config, keyed)
    add_tokenise(app, backend, config, keyed)
    if config.profile_dir is not None:
        add_profiler(app, backend, Path(config.profile_dir), keyed)
    if config.metrics_port is None:
        shown = backend.show_metrics or Exposition(backend.metrics, vllm=config.vllm_metrics).answer
        app.get(METRICS_PATH, dependencies=keyed, include_in_schema=False)(shown)

    @app.get("/beta/models", dependencies=keyed)
    @app.get("/models", dependencies=keyed)
    @app.get("/v1/models", dependencies=keyed)
    @answers(ModelList)
    async def models() -> Response:
        """The served model under each of its names."""
        return JsonResponse(backend.models())

    @app.get("/v1/models/{name:path}", dependencies=keyed)
    @answers(Model)
    async def model(name: str) -> Response:
        """One model, with its window."""
        return JsonResponse(backend.model(name))

    @app.get("/server_info", dependencies=keyed)
    @answers(dict[str, Any])
    async def server_info() -> Response:
        """The memory equation and the engine's last snapshot."""
        return JsonResponse(backend.info())

    @app.get("/health")
    @answers(dict[str, str])
    async def health() -> Response:
        """200 while an engine lives or is being started, 503 when there will be none: restart
        this replica."""
        if backend.lost:
            backend.require()
        return JsonResponse({"status": "ok"})

    @app.get("/ready")
    @answers(dict[str, str])
    async def ready() -> Response:
        """200 when requests are answered, 503 before and while stopping: send none."""
        backend.require()
        if backend.draining:
            raise ApiError(503, "The server is stopping.", code="stopping")
        return JsonResponse({"status": "ready"})

    @app.get("/version")
    @answers(dict[str, str])
    async def get_version() -> Response:
        """The version of Winnow."""
        return JsonResponse({"version": version()})

    backend.metrics.http.expect(getattr(route, "path", "") for route in app.routes)
    return app


def _error_at(path: str) -> type[msgspec.Struct]:
    """The shape of errors at a path."""
    return MessagesError if speaks_messages(path) else ErrorBody


def _answer_errors(app: FastAPI, counts: RequestCounts) -> None:
    """Every error leaves in OpenAI's shape, the framework's own included."""

    def answer(request: Request, error: ApiError) -> Response:
        if request.url.path not in UNCOUNTED:
            counts.refused(error)
        body = error_body(error) if speaks_messages(request.url.path) else error.body
        return JsonResponse(body, status_code=error.status, headers=error.headers)

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return answer(request, error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        response = answer(request, from_status(error.status_code, error.detail))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        return answer(request, ApiError(422, "The request is invalid.", code="invalid_value"))

    @app.exception_handler(ClientDisconnect)
    async def client_gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> Response:
        return answer(request, ApiError(500, "The server failed.", code="internal_error"))

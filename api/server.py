"""The HTTP routes: bodies in, answers and streams out. What they mean is decided elsewhere."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from api.anthropic.response import error_body
from api.anthropic.routes import add_messages, speaks_messages
from api.backend import Backend
from api.body import read_body
from api.config import ServerConfig
from api.errors import ApiError, from_status
from api.exchange import JsonResponse, deadline_s_of, tenant_of, unless_disconnected
from api.sse import EventStream
from api.version import version
from engine.client import ConfigError

TENANT_CHARACTERS = 16
"""Of a key's digest: enough to tell keys apart, of no use to guess them."""
CLIENT_CLOSED_REQUEST = 499
"""Nobody reads it; it is for the access log."""


def create_app(backend: Backend, config: ServerConfig) -> FastAPI:
    """Returns the application. Raises ConfigError for an unusable --api-key-file."""
    # Bodies are read by msgspec, so FastAPI could only publish a schema without them.
    app = FastAPI(title="Winnow", version=version(), openapi_url=None, redirect_slashes=False)
    _answer_errors(app)
    keyed = [Depends(_key_check(config.api_key_file))] if config.api_key_file else []

    @app.post("/v1/chat/completions", dependencies=keyed)
    async def chat_completions(request: Request) -> Response:
        """OpenAI chat completions, streamed or not."""
        service = backend.require()
        body = await read_body(request, config.max_body_bytes)
        work = service.start(body, tenant=tenant_of(request), deadline_s=deadline_s_of(request))
        turn = await unless_disconnected(request, work)
        headers = {"x-request-id": turn.id}
        if turn.request.stream:
            return EventStream(turn, turn.chunks, headers, keep_alive_s=config.keep_alive_s)
        async with turn:
            answer = await unless_disconnected(request, turn.completion())
        return JsonResponse(answer, headers=headers)

    add_messages(app, backend, config, keyed)

    @app.get("/v1/models", dependencies=keyed)
    async def models() -> Response:
        """The served model under each of its names."""
        return JsonResponse(backend.models())

    @app.get("/v1/models/{name:path}", dependencies=keyed)
    async def model(name: str) -> Response:
        """One model, with its window."""
        return JsonResponse(backend.model(name))

    @app.get("/server_info", dependencies=keyed)
    async def server_info() -> Response:
        """The memory equation and the engine's last snapshot."""
        return JsonResponse(backend.info())

    @app.get("/health")
    async def health() -> Response:
        """200 while the engine loads or lives, 503 when it is dead: restart this replica."""
        if backend.death is not None:
            backend.require()
        return JsonResponse({"status": "ok"})

    @app.get("/ready")
    async def ready() -> Response:
        """200 when requests are answered, 503 before and while stopping: send none."""
        backend.require()
        if backend.draining:
            raise ApiError(503, "The server is stopping.", code="stopping")
        return JsonResponse({"status": "ready"})

    @app.get("/version")
    async def get_version() -> Response:
        """The version of Winnow."""
        return JsonResponse({"version": version()})

    return app


def _answer_errors(app: FastAPI) -> None:
    """Every error leaves in OpenAI's shape, the framework's own included."""

    def answer(request: Request, error: ApiError) -> Response:
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


def _key_check(file: str) -> Callable[[Request], Awaitable[None]]:
    """Returns a dependency that refuses requests without one of the file's bearer keys.

    The key's digest is noted as the request's tenant.
    """
    try:
        lines = Path(file).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file {file} cannot be read: {error}") from error
    keys = [line.strip().encode() for line in lines if line.strip()]
    if not keys:
        raise ConfigError(f"--api-key-file {file} holds no key; write one per line")
    digests = [hashlib.sha256(key).digest() for key in keys]

    async def check(request: Request) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if not scheme:  # as Anthropic's clients send it
            scheme, key = "bearer", request.headers.get("x-api-key", "")
        digest = hashlib.sha256(key.strip().encode()).digest()
        # Every key is compared, in constant time: the answer's delay tells nothing.
        known = sum(hmac.compare_digest(digest, expected) for expected in digests)
        if scheme.lower() != "bearer" or not known:
            raise ApiError(
                401,
                "A valid API key is needed in the Authorization header.",
                code="invalid_api_key",
            )
        request.state.tenant = digest.hex()[:TENANT_CHARACTERS]

    return check

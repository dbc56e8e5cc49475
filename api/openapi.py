"""The OpenAPI page: FastAPI's, with the schemas of bodies that msgspec reads and writes.

    @answers(ChatCompletion, to=ChatCompletionRequest, streamed=ChatCompletionChunk)
    async def chat_completions(request: Request) -> Response: ...

FastAPI sees a request and a response; what is in them is said by the decorator, and published in
its words by :func:`publish`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from api.exchange import DEADLINE_HEADER

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

JSON, STREAM = "application/json", "text/event-stream"
_REFERENCE = "#/components/schemas/{name}"
_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
_DEADLINE = {
    "name": DEADLINE_HEADER,
    "in": "header",
    "required": False,
    "description": "Seconds in which the first token must come.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}


class Operation(NamedTuple):
    """The types of a route's bodies, None where there is no body."""

    answer: Any
    request: Any
    streamed: Any
    """Of the messages in the events of a streamed answer."""


def answers(answer: Any, *, to: Any = None, streamed: Any = None) -> Callable[[Endpoint], Endpoint]:
    """Returns a decorator that notes what an endpoint answers, to what, and in which events."""

    def note(endpoint: Endpoint) -> Endpoint:
        endpoint.__dict__["operation"] = Operation(answer, to, streamed)
        return endpoint

    return note


def publish(app: FastAPI, description: str, error_at: Callable[[str], Any]) -> None:
    """Makes the application serve its schema: the noted routes that it has when first asked.

    error_at: path of a route -> type of its errors' bodies.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, description, error_at)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _document(app: FastAPI, description: str, error_at: Callable[[str], Any]) -> dict[str, Any]:
    noted = [
        (route, route.endpoint.__dict__["operation"])
        for route in app.routes
        if isinstance(route, APIRoute) and "operation" in route.endpoint.__dict__
    ]
    operations: dict[str, Operation] = {route.path: operation for route, operation in noted}
    types = list(
        dict.fromkeys(
            kind
            for path, operation in operations.items()
            for kind in (*operation, error_at(path))
            if kind is not None
        )
    )
    schemas, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    schema_of: Mapping[Any, dict[str, Any]] = dict(zip(types, schemas, strict=True))
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=description,
        routes=[route for route, _ in noted],
    )
    for route, operation in noted:
        for method in route.methods or ():
            written = document["paths"][route.path_format][method.lower()]
            written["responses"] = _responses(operation, error_at(route.path), schema_of)
            if operation.request is not None:
                schema = schema_of[operation.request]
                written["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
            if operation.streamed is not None:
                written.setdefault("parameters", []).append(_DEADLINE)
            if route.dependencies:
                written["security"] = [{name: []} for name in _SECURITY]
    document["components"] = {"schemas": components, "securitySchemes": _SECURITY}
    return document


def _responses(
    operation: Operation, error: Any, schema_of: Mapping[Any, dict[str, Any]]
) -> dict[str, Any]:
    content: dict[str, Any] = {JSON: {"schema": schema_of[operation.answer]}}
    if operation.streamed is not None:
        content[STREAM] = {"schema": schema_of[operation.streamed]}
    failure = {JSON: {"schema": schema_of[error]}}
    return {
        "200": {"description": "The answer.", "content": content},
        "4XX": {"description": "The request is refused.", "content": failure},
        "5XX": {"description": "The server failed or is busy.", "content": failure},
    }

"""api.openapi: the published schema is complete, valid, and true of what the routes answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.openapi.models import OpenAPI
from fastapi.routing import APIRoute

from api.config import ServerConfig
from api.openapi import answers, publish
from api.server import create_app
from tests.api.scripted_engine import MODEL, Scripted
from tests.api.test_server import get, http

BODILESS = ("get",)


@pytest.fixture
def document(scripted: Scripted) -> dict[str, Any]:
    found: dict[str, Any] = get(scripted.backend, "/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        name = schema["$ref"].removeprefix("#/components/schemas/")
        schema = document["components"]["schemas"][name]
    return schema


def test_it_is_an_openapi_document_without_loose_ends(document: dict[str, Any]) -> None:
    OpenAPI.model_validate(document)
    assert document["openapi"].startswith("3.1")
    found = set(references(document))
    names = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert found and found <= names
    assert "HTTPValidationError" not in document["components"]["schemas"]
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(ids) == len(set(ids))


def test_every_route_says_what_it_takes_and_answers(document: dict[str, Any]) -> None:
    paths = set(document["paths"])
    assert paths >= {
        "/v1/chat/completions",
        "/beta/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/anthropic/v1/messages",
        "/v1/messages/count_tokens",
        "/tokenize",
        "/v1/detokenize",
        "/v1/models",
        "/v1/models/{name}",
        "/health",
    }
    for path, method, operation in operations(document):
        answer = resolved(document, schema_in(operation["responses"]["200"]))
        assert answer["type"] == "object"
        named = answer.get("properties") or "additionalProperties" in answer
        assert named or path == "/server_info", path  # which grows with the engine
        if method not in BODILESS:
            assert operation["requestBody"]["required"]
            taken = resolved(document, schema_in(operation["requestBody"]))
            assert taken["type"] == "object" and taken["properties"], path


def schema_in(holder: dict[str, Any], media: str = "application/json") -> dict[str, Any]:
    schema: dict[str, Any] = holder["content"][media]["schema"]
    return schema


@pytest.mark.parametrize(
    ("path", "fields", "required"),
    [
        ("/v1/chat/completions", {"thinking", "tools", "prefix"}, {"messages", "model"}),
        ("/v1/completions", {"best_of", "echo"}, {"model", "prompt"}),
        ("/v1/responses", {"instructions", "text"}, {"input", "model"}),
        ("/v1/messages", {"system", "tool_choice"}, {"max_tokens", "messages", "model"}),
    ],
)
def test_bodies_are_the_real_ones(
    document: dict[str, Any], path: str, fields: set[str], required: set[str]
) -> None:
    operation = document["paths"][path]["post"]
    schema = resolved(document, schema_in(operation["requestBody"]))
    assert set(schema["required"]) == required
    assert fields - {"prefix"} <= set(schema["properties"])
    if "prefix" in fields:
        message = resolved(document, schema["properties"]["messages"]["items"])
        assert "prefix" in message["properties"]
    events = resolved(document, schema_in(operation["responses"]["200"], "text/event-stream"))
    assert "anyOf" in events or "choices" in events["properties"]
    assert any(p["name"] == "x-request-timeout" for p in operation["parameters"])


@pytest.mark.parametrize(
    ("path", "method", "key"),
    [
        ("/v1/completions", "post", "error"),
        ("/v1/models/{name}", "get", "error"),
        ("/anthropic/v1/messages", "post", "type"),
    ],
)
def test_errors_have_the_shape_of_their_dialect(
    scripted: Scripted, document: dict[str, Any], path: str, method: str, key: str
) -> None:
    responses = document["paths"][path][method]["responses"]
    assert set(responses) == {"200", "4XX", "5XX"}
    schema = resolved(document, schema_in(responses["4XX"]))
    assert key in schema["properties"]
    sent = http(scripted.backend, lambda c: c.request(method, path, content=b"{}"))
    assert 400 <= sent.status_code < 500
    assert set(sent.json()) == set(schema["properties"])


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
        ("/v1/completions", {"prompt": "Hi", "logprobs": 1}),
        ("/v1/responses", {"input": "Hi"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}),
        ("/tokenize", {"prompt": "Hi"}),
        ("/detokenize", {"tokens": [99]}),
    ],
)
def test_answers_have_the_published_fields(
    scripted: Scripted, document: dict[str, Any], path: str, fields: dict[str, Any]
) -> None:
    sent = http(scripted.backend, lambda c: c.post(path, json={"model": MODEL, **fields}))
    assert sent.status_code == 200
    responses = document["paths"][path]["post"]["responses"]
    schema = resolved(document, schema_in(responses["200"]))
    assert set(schema["required"]) <= set(sent.json()) <= set(schema["properties"])


def test_the_page_shows_it(scripted: Scripted) -> None:
    page = get(scripted.backend, "/docs")
    assert page.status_code == 200 and "/openapi.json" in page.text


def test_keys_are_asked_for_where_they_are_needed(scripted: Scripted, tmp_path: Any) -> None:
    file = tmp_path / "keys"
    file.write_text("secret\n")
    app = create_app(scripted.backend, ServerConfig(api_key_file=str(file)))
    paths = app.openapi()["paths"]
    assert paths["/v1/completions"]["post"]["security"] == [{"bearer": []}, {"x-api-key": []}]
    assert "security" not in paths["/health"]["get"]


def test_no_route_is_forgotten(scripted: Scripted) -> None:
    app = create_app(scripted.backend, ServerConfig())
    routes = {route.path_format for route in app.routes if isinstance(route, APIRoute)}
    assert routes - {"/metrics"} == set(app.openapi()["paths"])  # its answer is not JSON


def test_only_noted_routes_are_published() -> None:
    app = FastAPI()
    publish(app, "", lambda path: dict[str, str])

    @app.get("/a")
    @answers(int)
    async def noted(request: Request) -> None: ...

    @app.get("/b")
    async def silent(request: Request) -> None: ...

    assert set(app.openapi()["paths"]) == {"/a"}

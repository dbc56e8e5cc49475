"""api.metrics.tracing: one span per request, over a scripted model and a kept list of spans."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from api.config import ServerConfig
from api.metrics.metrics import Metrics
from api.metrics.tracing import Tracing
from api.server import create_app
from api.service import ChatService
from engine.client import ConfigError, GenerationDefaults
from tests.api.scripted_engine import MODEL, Scripted, body

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector:
    """The spans of everything that was asked of a scripted model."""

    def __init__(self, scripted: Scripted) -> None:
        self._exporter = InMemorySpanExporter()
        self._tracing = Tracing(self._exporter, MODEL)
        metrics: Metrics = scripted.backend.metrics
        metrics.requests.tracing = self._tracing
        scripted.backend.service = scripted.service = ChatService(
            scripted.engine,  # type: ignore[arg-type]
            scripted.encoder,
            (MODEL,),
            GenerationDefaults(),
            metrics=metrics,
        )

    def spans(self) -> list[ReadableSpan]:
        self._tracing.close()
        return list(self._exporter.get_finished_spans())


@pytest.fixture
def collector(scripted: Scripted) -> Iterator[Collector]:
    yield Collector(scripted)


def post(scripted: Scripted, path: str, content: bytes, **headers: str) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(scripted.backend, ServerConfig()))
        async with httpx.AsyncClient(transport=transport, base_url="http://winnow") as client:
            return await client.post(path, content=content, headers=headers)

    return asyncio.run(run())


def test_a_request_is_a_span_below_its_clients(scripted: Scripted, collector: Collector) -> None:
    answer = post(scripted, "/v1/chat/completions", body(top_p=0.5, seed=3), traceparent=PARENT)
    usage = answer.json()["usage"]
    (span,) = collector.spans()
    assert span.name == f"chat {MODEL}" and span.kind is SpanKind.SERVER
    assert span.parent is not None and f"{span.parent.span_id:016x}" in PARENT
    assert span.context is not None and f"{span.context.trace_id:032x}" in PARENT
    assert span.attributes is not None
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "winnow",
        "gen_ai.request.model": MODEL,
        "gen_ai.request.top_p": 0.5,
        "gen_ai.request.seed": 3,
        "gen_ai.request.stream": False,
        "gen_ai.response.id": answer.json()["id"],
        "gen_ai.response.model": MODEL,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
    }
    assert expected.items() <= span.attributes.items()
    (event,) = span.events
    assert event.name == "first_token"
    assert span.start_time is not None and span.end_time is not None
    assert span.start_time <= event.timestamp <= span.end_time
    assert span.status.status_code is StatusCode.UNSET


def test_no_text_of_the_conversation_is_in_it(scripted: Scripted, collector: Collector) -> None:
    scripted.replies = ["a secret answer"]
    secret = [{"role": "user", "content": "a secret question"}]
    post(scripted, "/v1/chat/completions", body(messages=secret))
    (span,) = collector.spans()
    assert "secret" not in span.to_json()


def test_without_a_parent_it_is_a_root(scripted: Scripted, collector: Collector) -> None:
    for header in ({}, {"traceparent": "nonsense"}):
        post(scripted, "/v1/chat/completions", body(), **header)
    assert [span.parent for span in collector.spans()] == [None, None]


def test_text_completions_and_choices(scripted: Scripted, collector: Collector) -> None:
    content = f'{{"model": "{MODEL}", "prompt": "Hi", "n": 2}}'.encode()
    assert post(scripted, "/v1/completions", content).status_code == 200
    (span,) = collector.spans()
    assert span.name == f"text_completion {MODEL}"
    assert span.attributes is not None and span.attributes["gen_ai.request.choice.count"] == 2


def test_an_engine_that_dies_is_an_error(scripted: Scripted, collector: Collector) -> None:
    async def die() -> None:
        async with await scripted.service.start(body()) as turn:
            scripted.engine.death = "killed"
            await turn.completion()

    with pytest.raises(Exception, match="killed"):
        asyncio.run(die())
    (span,) = collector.spans()
    assert span.status.status_code is StatusCode.ERROR and not span.events
    assert span.attributes is not None
    assert span.attributes["gen_ai.response.finish_reasons"] == ("error",)
    assert span.attributes["error.type"] == "engine_error"


def test_without_the_exporter_the_flag_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = builtins.__import__

    def missing(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("opentelemetry.exporter"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r"winnow\[otel\]"):
        Tracing.to("http://localhost:4318/v1/traces", MODEL)

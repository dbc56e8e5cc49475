"""One OpenTelemetry span per request, by the conventions for generative AI; off by default.

A span is made when its request is over, with the times taken on the way, so that nothing is done
for it while tokens come. No text of prompts or answers goes into it.

Source: OpenTelemetry's semantic conventions for generative AI systems (status: development).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING

from api.metrics.ended import Ended
from api.version import version
from engine.client import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

PROVIDER = "winnow"
EXPORT_TIMEOUT_S = 5
"""After which spans are lost: a collector that is away must not hold up the end of the server."""

traceparent: ContextVar[str | None] = ContextVar("traceparent", default=None)
"""The W3C header of the running request: the span that its client opened."""


class Tracing:
    """Sends a span for each story it is told; `close` sends what is left."""

    def __init__(self, exporter: SpanExporter, served_model: str) -> None:
        """exporter: where spans go, in batches, on a thread of its own."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({"service.name": "winnow", "service.version": version()})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("winnow", version())
        self._served_model = served_model

    @classmethod
    def to(cls, endpoint: str, served_model: str) -> Tracing:
        """Returns what sends spans to an OTLP/HTTP endpoint.

        Raises ConfigError when the exporter is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError as error:
            raise ConfigError(
                "--otlp-traces-endpoint needs OpenTelemetry: pip install 'winnow[otel]'"
            ) from error
        return cls(OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_S), served_model)

    def ended(
        self,
        ended: Ended,
        *,
        seconds: float,
        first_token_s: float | None,
        parent: str | None,
        failed: bool,
    ) -> None:
        """Takes a request that has just ended.

        seconds, first_token_s: from its arrival to its end and to its first token. parent: a
        traceparent header.
        """
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        end_ns = time.time_ns()
        begin_ns = end_ns - round(seconds * 1e9)
        carrier = {"traceparent": parent} if parent else {}
        span = self._tracer.start_span(
            f"{ended.operation} {ended.model}",
            context=TraceContextTextMapPropagator().extract(carrier),
            kind=SpanKind.SERVER,
            attributes=attributes(ended, first_token_s, self._served_model),
            start_time=begin_ns,
        )
        if first_token_s is not None:
            span.add_event("first_token", timestamp=begin_ns + round(first_token_s * 1e9))
        if failed:
            span.set_attribute("error.type", "engine_error")
            span.set_attribute(
                "gen_ai.response.finish_reasons",
                [reason or "error" for reason, _ in ended.choices],
            )
            span.set_status(Status(StatusCode.ERROR))
        span.end(end_time=end_ns)

    def close(self) -> None:
        """Sends what was not sent yet; takes as long as that takes."""
        self._provider.shutdown()


def attributes(
    ended: Ended, first_token_s: float | None, served_model: str
) -> dict[str, str | int | float | Sequence[str]]:
    """Returns a span's attributes. What a request did not say is left out where it can be."""
    sampling = ended.sampling
    found: dict[str, str | int | float | Sequence[str]] = {
        "gen_ai.operation.name": ended.operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": ended.model,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.seed": sampling.seed,
        "gen_ai.request.stream": ended.stream,
        "gen_ai.response.id": ended.id,
        "gen_ai.response.model": served_model,
        "gen_ai.response.finish_reasons": [reason or "abort" for reason, _ in ended.choices],
        "gen_ai.usage.input_tokens": sum(ended.prompt_tokens),
        "gen_ai.usage.cache_read.input_tokens": ended.cached_tokens,
        "gen_ai.usage.output_tokens": sum(tokens for _, tokens in ended.choices),
        "gen_ai.usage.reasoning.output_tokens": ended.reasoning_tokens,
    }
    if len(ended.choices) > 1:
        found["gen_ai.request.choice.count"] = len(ended.choices)
    if first_token_s is not None:
        found["gen_ai.response.time_to_first_chunk"] = first_token_s
    return found

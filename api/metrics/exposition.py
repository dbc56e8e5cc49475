"""`/metrics`: written one family at a time, with the event loop running in between.

A scrape therefore holds up a token for no longer than one family takes, not for all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.metrics.metrics import Metrics
from api.metrics.vllm import vllm_families

PATH = "/metrics"
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class Exposition:
    """What is shown at PATH."""

    def __init__(self, metrics: Metrics, *, vllm: bool = False, of_others: bool = False) -> None:
        """vllm: also under vLLM's names. of_others: what other processes count is shown, and this
        one answers no request."""
        self._metrics, self._vllm, self._of_others = metrics, vllm, of_others
        self._process = ProcessCollector(registry=CollectorRegistry())
        self._busy = asyncio.Lock()

    def families(self) -> Iterator[Family]:
        """Yields everything that is shown."""
        if not self._of_others:
            self._metrics.process.note()
        yield from self._metrics.families()
        if self._vllm:
            yield from vllm_families(self._metrics)
        yield from self._process.collect()

    async def text(self) -> bytes:
        """Returns all metrics in Prometheus' text format, version 0.0.4."""
        async with self._busy:
            begin_s = time.perf_counter()
            parts = []
            for family in self.families():
                parts.append(generate_latest(_Only((family,))))
                await asyncio.sleep(0)
            self._metrics.scraped(time.perf_counter() - begin_s)
            return b"".join(parts)

    async def answer(self, request: Request) -> Response:
        """The endpoint."""
        return Response(await self.text(), media_type=CONTENT_TYPE)

    def app(self) -> Starlette:
        """Returns an application of nothing else, for a port of its own."""
        return Starlette(routes=[Route(PATH, self.answer)])


def add_metrics(app: FastAPI, exposition: Exposition) -> None:
    """Serves the metrics beside the other routes."""
    app.add_route(PATH, exposition.answer, include_in_schema=False)


class _Only(Collector):
    """A registry of what it is given."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Family]:
        return self._families

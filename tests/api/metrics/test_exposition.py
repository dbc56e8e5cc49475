"""/metrics: its routes, its text, and that a scrape lets others in."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from api.backend import Backend
from api.config import ServerConfig
from api.metrics.exposition import Exposition
from api.metrics.metrics import Metrics
from api.server import create_app
from engine.client import ConfigError
from tests.api.scripted_engine import MODEL, Scripted, body

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
BASE = {"model_name": MODEL, "engine": "0", "role": "mixed"}


def ask(backend: Backend, *requests: httpx.Request, **config: Any) -> list[httpx.Response]:
    """Sends requests, one after the other, to an application over the backend."""

    async def run() -> list[httpx.Response]:
        app = create_app(backend, ServerConfig(**config))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport) as client:
            return [await client.send(request) for request in requests]

    return asyncio.run(run())


def request(method: str, path: str, content: bytes = b"", **headers: str) -> httpx.Request:
    return httpx.Request(method, f"http://winnow{path}", content=content, headers=headers)


METRICS = request("GET", "/metrics")


def samples(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(text: str, name: str, **labels: str) -> float:
    return samples(text)[name, frozenset((BASE | labels).items())]


def test_answers_are_counted_by_route_and_refusals_by_reason(scripted: Scripted) -> None:
    chat = request("POST", "/v1/chat/completions", body())
    bad = request("POST", "/v1/chat/completions", b"{}")
    lost = request("GET", "/v1/nowhere?key=secret")
    ready = request("GET", "/ready")
    *_, answer = ask(scripted.backend, chat, chat, bad, lost, ready, METRICS)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    name, route = "winnow_http_requests_total", "/v1/chat/completions"
    assert value(answer.text, name, route=route, code="2xx") == 2
    assert value(answer.text, name, route=route, code="4xx") == 1
    assert value(answer.text, name, route=route, code="5xx") == 0
    assert value(answer.text, name, route="other", code="4xx") == 1
    assert "secret" not in answer.text and "nowhere" not in answer.text
    assert value(answer.text, "winnow_refusals_total", reason="invalid_request") == 1
    assert value(answer.text, "winnow_http_requests_in_flight") == 1, "this one"


def test_before_the_engine_is_there() -> None:
    (answer,) = ask(Backend((MODEL,)), METRICS)
    assert value(answer.text, "winnow_engine_up") == 0
    assert value(answer.text, "winnow_ready") == 0
    (answer,) = ask(Backend((MODEL,)), request("GET", "/ready"), METRICS)[1:]
    assert value(answer.text, "winnow_refusals_total", reason="loading") == 0, "a probe"


def test_a_key_is_asked_for_beside_the_api(scripted: Scripted, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    allowed = request("GET", "/metrics", authorization="Bearer secret")
    answers = ask(scripted.backend, METRICS, allowed, api_key_file=str(keys))
    assert [answer.status_code for answer in answers] == [401, 200]


def test_with_a_port_of_their_own_they_are_there_only(scripted: Scripted) -> None:
    (answer,) = ask(scripted.backend, METRICS, metrics_port=9100)
    assert answer.status_code == 404

    async def own() -> httpx.Response:
        app = Exposition(scripted.backend.metrics).app()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            return await client.get("http://winnow/metrics")

    assert "winnow_ready" in asyncio.run(own()).text


def test_the_names_of_vllm_are_behind_a_flag(scripted: Scripted) -> None:
    chat = request("POST", "/v1/chat/completions", body())
    (plain,) = ask(scripted.backend, METRICS)
    assert "vllm:" not in plain.text
    _, both = ask(scripted.backend, chat, METRICS, vllm_metrics=True)
    families = {f.name: f.type for f in text_string_to_metric_families(both.text)}
    theirs = {name: kind for name, kind in families.items() if name.startswith("vllm:")}
    assert theirs["vllm:e2e_request_latency_seconds"] == "histogram"
    assert theirs["vllm:prompt_tokens"] == theirs["vllm:request_success"] == "counter"
    assert plain.text.count("\n") < both.text.count("\n")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"metrics_port": 65536}, "--metrics-port is 65536"),
        ({"gpu_price_usd_per_hour": -2.0}, "--gpu-price-usd-per-hour is -2"),
    ],
)
def test_settings_out_of_range(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServerConfig(**config)


def test_others_run_between_the_families() -> None:
    turns = 0

    async def other(scrape: asyncio.Task[bytes]) -> None:
        nonlocal turns
        while not scrape.done():
            turns += 1
            await asyncio.sleep(0)

    async def run() -> int:
        exposition = Exposition(Metrics(MODEL))
        scrape = asyncio.create_task(exposition.text())
        await asyncio.gather(scrape, other(scrape))
        return sum(1 for _ in exposition.families())

    families = asyncio.run(run())
    assert turns >= families > 10

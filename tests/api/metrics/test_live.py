"""/metrics of a real server over a tiny random model."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.api.metrics.test_names import MOST_SERIES
from tests.api.server_process import ServerProcess

SCRAPES = 10_000


@pytest.fixture
def collector() -> Iterator[tuple[str, SimpleQueue[bytes]]]:
    """An OTLP endpoint, and what it was sent."""
    spans: SimpleQueue[bytes] = SimpleQueue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            spans.put(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", spans
    server.shutdown()
    thread.join()
    server.server_close()


def totals(server: ServerProcess) -> dict[str, float]:
    """Sample name -> sum over its series."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def test_the_engine_reports_what_it_did(server: ServerProcess) -> None:
    before = totals(server)
    model = httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"]
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)
    usage = answer.json()["usage"]
    sampled = {"winnow_first_tokens_total", "winnow_inter_token_seconds_count"}
    for _ in range(SCRAPES):  # what the engine did is known with its next report
        after = totals(server)
        new = {name: value - before.get(name, 0.0) for name, value in after.items()}
        if sum(new[name] for name in sampled) == usage["completion_tokens"]:
            break
    assert sum(new[name] for name in sampled) == usage["completion_tokens"]
    assert new["winnow_finished_choices_total"] == 1
    assert new["winnow_output_tokens_sum"] == usage["completion_tokens"]
    assert new["winnow_prompt_tokens_sum"] == usage["prompt_tokens"]
    for name in (
        "winnow_gpu_seconds_total",
        "winnow_expected_cost_usd_total",
        "winnow_model_flops_total",
        "winnow_step_seconds_sum",
        "winnow_step_predicted_seconds_total",
        "winnow_step_overhead_seconds_total",
        "winnow_context_tokens_total",
    ):
        assert new[name] > 0, name
    ready = httpx.get(f"{server.url}/server_info").json()
    assert after["winnow_pages"] == ready["total_pages"]
    assert after["winnow_memory_bytes"] == sum(ready["memory_bytes"].values())


def series(server: ServerProcess) -> set[str]:
    """Every series of a scrape: name and labels."""
    text = httpx.get(f"{server.url}/metrics").text
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found = {line.rsplit(" ", 1)[0] for line in lines}
    assert len(found) == len(lines), "each one once"
    return found


def test_there_are_no_more_series_than_promised_whatever_is_asked(server: ServerProcess) -> None:
    before = series(server)
    assert 200 < len(before) <= MOST_SERIES
    with httpx.Client(base_url=server.url, timeout=120) as client:
        model = client.get("/v1/models").json()["data"][0]["id"]
        said: Any = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}
        said |= {"max_tokens": 4}
        for path, body in (
            ("/v1/chat/completions", said),
            ("/v1/chat/completions", said | {"stream": True, "n": 2}),
            ("/v1/chat/completions", said | {"thinking": {"type": "enabled"}}),
            ("/v1/messages", said),
            ("/v1/completions", {"model": model, "prompt": ["a", "b"], "max_tokens": 2}),
            ("/v1/responses", {"model": model, "input": "Hi", "max_output_tokens": 4}),
        ):
            assert client.post(path, json=body).status_code == 200, path
        for number in range(5):
            assert client.post(f"/v1/nowhere/{number}", json={}).status_code == 404
            wrong = said | {"model": f"another-{number}", "user": f"user-{number}"}
            assert client.post("/v1/chat/completions", json=wrong).status_code == 404
            broken = client.post("/v1/chat/completions", content=b"{" * number)
            assert broken.status_code == 400
            client.request("BREW", "/v1/chat/completions")
    after = series(server)
    assert len(after) <= MOST_SERIES
    # Traffic brings no series of its own, but for what the engine's first report brings.
    assert not {one for one in after - before if "route=" in one or "reason=" in one}


def test_everything_that_is_off_by_default(
    start_server: Callable[..., ServerProcess],
    collector: tuple[str, SimpleQueue[bytes]],
    tmp_path: Path,
) -> None:
    endpoint, spans = collector
    server = start_server(
        *("--metrics-port", "0", "--vllm-metrics", "--usage-cost"),
        *("--gpu-price-usd-per-hour", "3", "--kv-cache-bytes", "8MiB"),
        *("--otlp-traces-endpoint", endpoint, "--profile-dir", str(tmp_path)),
    )
    (metrics,) = re.findall(r"metrics (http://\S+)", server.log)
    assert httpx.get(f"{server.url}/metrics").status_code == 404
    model = httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"]
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
    profile: list[httpx.Response] = []

    def ask_profile() -> None:
        profile.append(httpx.post(f"{server.url}/debug/profile?steps=2", timeout=120))

    profiler = threading.Thread(target=ask_profile)
    profiler.start()
    while True:  # whichever comes first, the profile has its steps in the end
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120).json()
        if profile:
            break
    profiler.join()
    written = profile[0].json()
    assert written["steps"] == 2 and Path(written["file"]).parent == tmp_path
    assert Path(written["file"]).stat().st_size > 0
    assert answer["usage"]["cost"]["usd_per_gpu_hour"] == 3
    assert answer["usage"]["cost"]["usd"] > 0
    text = httpx.get(metrics).text
    assert "vllm:prompt_tokens_total" in text
    assert 'winnow_gpu_price_usd_per_hour{engine="0"' in text
    assert server.close() == 0
    sent = b""
    while answer["id"].encode() not in sent:  # what was left is sent at the end
        sent += spans.get(timeout=60)

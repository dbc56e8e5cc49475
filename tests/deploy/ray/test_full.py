"""One replica that has one request at a time, and one that may wait: all others are told so."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import httpx
import pytest

from tests.deploy.ray.live import LiveCluster

pytestmark = [pytest.mark.check, pytest.mark.timeout(1200)]

CHAT = "/v1/chat/completions"
WAITING_S = 3


def test_who_finds_no_room_is_told_so_and_can_come_again() -> None:
    cluster = LiveCluster(
        "cpus_per_replica=0.5",
        "max_ongoing_requests=1",
        "max_queued_requests=1",
        f"routing_timeout_s={WAITING_S}",
        "max_body_bytes=100000",
        "options=--threads 1 --kv-cache-bytes 64MiB",
    )
    try:
        asyncio.run(come_and_go(cluster.url))
    finally:
        cluster.close()


async def come_and_go(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=300) as http:
        model = (await http.get("/v1/models")).json()["data"][0]["id"]
        body: Any = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}
        long = body | {"max_tokens": 12_000, "ignore_eos": True, "stream": True}
        async with http.stream("POST", CHAT, json=long) as running:
            assert running.status_code == 200
            refused = await asyncio.gather(*(http.post(CHAT, json=body) for _ in range(4)))
            codes = Counter(answer.json()["error"]["code"] for answer in refused)
            assert codes == {"overloaded": 3, "no_replica": 1}
            for answer in refused:
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
            other = await asyncio.gather(*(http.post("/v1/messages", json=body) for _ in range(2)))
            assert {answer.json()["error"]["type"] for answer in other} == {"overloaded_error"}
        async with asyncio.timeout(120):
            while (await http.post(CHAT, json=body | {"max_tokens": 4})).status_code != 200:
                await asyncio.sleep(0.1)
        large = await http.post(CHAT, content=b" " * 100_001)
        assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")

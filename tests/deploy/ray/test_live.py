"""The application with two replicas on this machine: kept apart, killed, scaled; `make check`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from tests.deploy.ray.live import PYTHON, LiveCluster, LiveReplica, alive, until
from tests.soak.traffic import Findings, client_of

pytestmark = [pytest.mark.check, pytest.mark.timeout(1800)]

TARGET_REQUESTS = 8
LONG = {"max_tokens": 12_000, "ignore_eos": True, "stream": True}
CHAT = "/v1/chat/completions"
REPLICA = "x-winnow-replica"


@pytest.fixture(scope="module")
def cluster() -> Iterator[LiveCluster]:
    assert PYTHON.exists(), f"{PYTHON} is missing; `make check` makes it"
    cluster = LiveCluster(
        "min_replicas=2",
        "max_replicas=3",
        "cpus_per_replica=0.5",
        f"target_ongoing_requests={TARGET_REQUESTS}",
        "upscale_delay_s=1",
        "downscale_delay_s=3",
        "options=--threads 1 --kv-cache-bytes 64MiB --max-num-seqs 16",
    )
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def two(cluster: LiveCluster) -> list[LiveReplica]:
    """The replicas when there are two again."""
    return until(lambda: found if len(found := cluster.replicas()) == 2 else None)


def chat(text: str, **fields: Any) -> dict[str, Any]:
    """A request; text is said at length, so that it is worth to be kept."""
    said = f"{text}. " * (1 + 400 // len(text))
    return {"model": "any", "messages": [{"role": "user", "content": said}], **fields}


def client(cluster: LiveCluster) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=cluster.url, timeout=300, limits=httpx.Limits())


async def model_of(client: httpx.AsyncClient) -> str:
    return str((await client.get("/v1/models")).json()["data"][0]["id"])


@contextlib.asynccontextmanager
async def streams(
    client: httpx.AsyncClient, model: str, count: int
) -> AsyncIterator[list[httpx.Response]]:
    """Long answers, all of which have begun."""
    async with contextlib.AsyncExitStack() as stack:
        requests = [
            stack.enter_async_context(
                client.stream("POST", CHAT, json=chat(f"Story {i}", **LONG) | {"model": model})
            )
            for i in range(count)
        ]
        yield [await request for request in requests]


async def last_event(answer: httpx.Response) -> Any:
    """The last event of a stream that is read to its end, which must be a whole one."""
    text = (await answer.aread()).decode()
    assert text.endswith("\n\n")
    return json.loads(text.strip().split("\n\n")[-1].rpartition("data: ")[2])


def held(replica: LiveReplica) -> int:
    """The requests that its server runs or has waiting."""
    snapshot = httpx.get(f"{replica.url}/server_info").json()["snapshot"]
    return int(snapshot["running"] + snapshot["waiting"])


def test_every_dialect_passes(cluster: LiveCluster, two: list[LiveReplica]) -> None:
    async def run() -> None:
        async with client(cluster) as http:
            model = await model_of(http)
            hello = [{"role": "user", "content": "Hello"}]
            for path, body in (
                (CHAT, {"messages": hello}),
                ("/v1/completions", {"prompt": "Hello"}),
                ("/v1/responses", {"input": "Hello"}),
                ("/v1/messages", {"messages": hello, "max_tokens": 8}),
            ):
                for stream in (False, True):
                    answer = await http.post(path, json=body | {"model": model, "stream": stream})
                    assert answer.status_code == 200, answer.text
                    kind = "text/event-stream" if stream else "application/json"
                    assert answer.headers["content-type"].startswith(kind)
                    assert answer.headers[REPLICA]
                refused = await http.post(path, content=b"{")
                assert refused.status_code == 400
                assert "error" in refused.json()

    asyncio.run(run())


def test_each_replica_speaks_for_itself(cluster: LiveCluster, two: list[LiveReplica]) -> None:
    """Prometheus finds them at /replicas and scrapes each by its name."""
    with httpx.Client(base_url=cluster.url, timeout=60) as http:
        targets = http.get("/replicas").json()
        assert {target["targets"][0] for target in targets} == {http.base_url.netloc.decode()}
        names = {target["labels"]["__param_replica"] for target in targets}
        assert len(names) == 2
        for name in names:
            scraped = http.get("/metrics", params={"replica": name})
            assert scraped.headers[REPLICA] == name
            assert "winnow_engine_up" in scraped.text
        missing = http.get("/metrics", params={"replica": "nobody"})
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "replica_not_found")
        # Nothing on the way reads a path or a query in its own way.
        strange = http.get("/v1/models/a%20b%2Fc%3F?x=%26")
        assert "'a b/c?'" in strange.json()["error"]["message"]


def test_a_conversation_goes_back_and_finds_its_prefix(
    cluster: LiveCluster, two: list[LiveReplica]
) -> None:
    async def run() -> None:
        async with client(cluster) as http:
            model = await model_of(http)
            homes: Counter[str] = Counter()
            for number in range(6):
                body = chat(f"My name is {number} and I like rivers", max_tokens=8, model=model)
                first = await http.post(CHAT, json=body)
                said = first.json()["choices"][0]["message"]
                more = [said, {"role": "user", "content": "And then?"}]
                body |= {"messages": body["messages"] + more}
                second = await http.post(CHAT, json=body)
                assert second.headers[REPLICA] == first.headers[REPLICA]
                assert second.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
                homes[first.headers[REPLICA]] += 1
            assert len(homes) == 2 and min(homes.values()) >= 2

    asyncio.run(run())


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_replica(
    cluster: LiveCluster, two: list[LiveReplica], stream: bool
) -> None:
    async def run() -> None:
        async with client(cluster) as http:
            body = chat("A tale", **LONG) | {"model": await model_of(http), "stream": stream}
            request = asyncio.create_task(http.post(CHAT, json=body))
            await asyncio.to_thread(until, lambda: any(held(replica) for replica in two))
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)

    asyncio.run(run())
    until(lambda: not any(held(replica) for replica in two))


@pytest.mark.parametrize("victim", ["actor", "server"])
def test_who_dies_under_load_loses_nothing_in_silence(
    cluster: LiveCluster, two: list[LiveReplica], victim: str
) -> None:
    """victim: Ray's process of a replica, or the server that it started."""

    async def run() -> None:
        async with client(cluster) as http:
            model = await model_of(http)
            findings, stop = Findings(), asyncio.Event()
            async with streams(http, model, 4) as answers:
                homes = Counter(answer.headers[REPLICA] for answer in answers)
                assert len(homes) == 2
                crowd = [
                    asyncio.create_task(client_of(cluster.url, model, seed, findings, stop))
                    for seed in range(3)
                ]
                await asyncio.to_thread(until, lambda: findings.outcomes["answered"] > 3)
                broken = two[0]
                os.kill(getattr(broken, victim), signal.SIGKILL)
                # The streams of the one that lives would go on for long.
                ends = {asyncio.create_task(last_event(each)): each for each in answers}
                first, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                lost = ends[next(iter(first))].headers[REPLICA]
                for end, answer in ends.items():
                    if answer.headers[REPLICA] == lost:
                        assert (await end)["error"]["code"] == "replica_lost"
                    else:
                        assert not end.done()
                        end.cancel()
                await asyncio.gather(*ends, return_exceptions=True)
            for number in range(8):
                body = chat(f"New {number}", max_tokens=4, model=model)
                answer = await http.post(CHAT, json=body)
                assert answer.status_code == 200, answer.text
                assert answer.headers[REPLICA] != lost
            await asyncio.to_thread(until, lambda: not alive(broken.server))
            await asyncio.to_thread(
                until, lambda: len(set(cluster.replicas()) - {broken}) == 2 or None
            )
            before = findings.outcomes["answered"]
            await asyncio.to_thread(until, lambda: findings.outcomes["answered"] > before + 5)
            stop.set()
            await asyncio.gather(*crowd)
            assert not findings.outcomes["broken"], findings.examples

    asyncio.run(run())


def test_replicas_follow_the_load_and_lose_nothing(
    cluster: LiveCluster, two: list[LiveReplica]
) -> None:
    async def run() -> None:
        async with client(cluster) as http:
            model = await model_of(http)
            findings, stop = Findings(), asyncio.Event()
            crowd = asyncio.create_task(client_of(cluster.url, model, 7, findings, stop))
            async with streams(http, model, 3 * TARGET_REQUESTS):
                await asyncio.to_thread(until, lambda: len(cluster.replicas()) == 3)
            await asyncio.to_thread(until, lambda: len(cluster.replicas()) == 2)
            stop.set()
            await crowd
            assert not findings.outcomes["broken"], findings.examples

    asyncio.run(run())

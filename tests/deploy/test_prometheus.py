"""Every query of every board, variable and rule, asked of a real Prometheus under load."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.grafana import render
from tests.api.server_process import ServerProcess
from tests.deploy.prometheus_process import Prometheus
from tests.deploy.promql import board_queries, boards, read_query, rules
from tests.deploy.test_rules import promtool
from tests.soak.traffic import TOOL, Findings, client_of

pytestmark = [pytest.mark.check, pytest.mark.timeout(1200)]

ROUNDS = 100
"""Of load, at most; a few give every query its data."""
PICTURE_CLIENTS, PICTURE_S = (2, 6, 12, 4), 45.0
"""Clients of one phase after the other, for `make pictures`: a board shows a course of events."""
QUESTION = "Please tell me what the capital of France is, and how many letters its name has. " * 3


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """The embedded checkpoint, with metrics on a port of their own."""
    server = ServerProcess("--kv-cache-bytes", "64MiB", "--metrics-port", "0", "--vllm-metrics")
    yield server
    assert server.close() == 0


@pytest.fixture(scope="module")
def metrics_url(server: ServerProcess) -> str:
    (url,) = re.findall(r"metrics (http://\S+)", server.log)
    return str(url)


def load(url: str, number: int) -> None:
    """One round: a conversation of two turns that thinks, others beside it, and a bad request."""

    def ask(messages: list[dict[str, Any]], **fields: Any) -> str:
        body = {"model": model, "messages": messages, "max_tokens": 12} | fields
        answer = client.post("/v1/chat/completions", json=body)
        answer.raise_for_status()
        return str(answer.json()["choices"][0]["message"]["content"])

    with httpx.Client(base_url=url, timeout=300) as client:
        model = client.get("/v1/models").json()["data"][0]["id"]
        first = [{"role": "user", "content": f"Question {number}. {QUESTION}"}]
        threads = [threading.Thread(target=ask, args=(first,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        said = ask(first, thinking={"type": "enabled"}, max_tokens=96)
        ask([*first, {"role": "assistant", "content": said}, {"role": "user", "content": "And?"}])
        assert client.post("/v1/chat/completions", json={"model": model}).status_code == 400
        for thread in threads:
            thread.join()


async def agent(url: str, model: str, stop: asyncio.Event) -> None:
    """Asks, has a tool called, sends the result without the reasoning, and thanks: what retention
    and pre-warming are for."""
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:

        async def ask(messages: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
            body = {"model": model, "messages": messages, "tools": [TOOL], "max_tokens": 300}
            body |= {"thinking": {"type": "enabled"}} | fields
            answer = await client.post("/v1/chat/completions", json=body)
            if answer.status_code != 200:
                return {"role": "assistant", "content": ""}
            said: dict[str, Any] = answer.json()["choices"][0]["message"]
            return {k: said[k] for k in ("role", "content", "tool_calls") if said.get(k)}

        while not stop.is_set():
            messages: list[dict[str, Any]] = [{"role": "user", "content": "Weather in Oslo?"}]
            call = await ask(messages, tool_choice="required", parallel_tool_calls=False)
            messages.append(call)
            for one in call.get("tool_calls", ()):
                result = {"role": "tool", "tool_call_id": one["id"], "content": "rain, 4 degrees"}
                messages.append(result)
            messages.append(await ask(messages))
            await asyncio.sleep(1)  # as people do: the next form of the turn is computed meanwhile
            messages.append({"role": "user", "content": "Thank you"})
            await ask(messages)


async def mixed_load(url: str) -> None:
    """What the soak's clients do: they chat, stream, call tools, leave and send garbage; and two
    agents beside them."""
    async with httpx.AsyncClient(base_url=url) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
    findings = Findings()
    for phase, count in enumerate(PICTURE_CLIENTS):
        stop = asyncio.Event()
        seeds = range(1000 * phase, 1000 * phase + count)
        clients = [
            asyncio.create_task(client_of(url, model, seed, findings, stop)) for seed in seeds
        ]
        clients += [asyncio.create_task(agent(url, model, stop)) for _ in range(2)]
        await asyncio.sleep(PICTURE_S)
        stop.set()
        await asyncio.gather(*clients)
    assert findings.outcomes["answered"] and not findings.examples


def draw_boards(prometheus: Prometheus, folder: Path) -> None:
    """Draws what Prometheus has seen since it started."""
    minutes = (time.time() - prometheus.begin_s) / 60
    where = ["--prometheus", prometheus.url, "--scrape-s", "1", "--minutes", str(minutes)]
    render.main([str(folder), *where])


def questions() -> dict[str, str]:
    """What must have data: (where it is from) -> query."""
    asked = {f"{board}: {panel}: {query}": query for board, panel, query in board_queries()}
    for rule in rules():
        if "record" in rule:
            asked[f"rule {rule['record']} {rule.get('labels', '')}"] = rule["record"]
        else:
            # An alert that does not fire has no data; what it reads must have.
            for selector in read_query(rule["expr"]).selectors:
                asked[f"alert {rule['alert']}: {selector.name}"] = selector.name
    return asked


def test_every_query_returns_data(server: ServerProcess, metrics_url: str, tmp_path: Path) -> None:
    target = metrics_url.removeprefix("http://").removesuffix("/metrics")
    with Prometheus(tmp_path, target) as prometheus:
        open_questions = questions()
        for number in range(ROUNDS):
            load(server.url, number)
            open_questions = {
                where: query
                for where, query in open_questions.items()
                if not prometheus.has_data(query)
            }
            if not open_questions:
                break
        assert not open_questions
        pictures = Path(os.environ.get("WINNOW_BOARDS", tmp_path / "boards"))
        if "WINNOW_BOARDS" in os.environ:
            asyncio.run(mixed_load(server.url))
        draw_boards(prometheus, pictures)
        assert {picture.stem for picture in pictures.glob("*.png")} == {
            Path(name).stem for name in boards()
        }
        for board in boards().values():
            for variable in board["templating"]["list"]:
                if variable["type"] == "query":
                    found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
                    assert found and prometheus.label_values(found[1], found[2])
        for group in prometheus.get("/rules")["groups"]:
            assert [(r["name"], r["health"]) for r in group["rules"] if r["health"] != "ok"] == []
        assert {one["health"] for one in prometheus.get("/targets")["activeTargets"]} == {"up"}


def test_promtool_finds_nothing_wrong_with_our_names(metrics_url: str) -> None:
    import shutil
    import subprocess

    promtool("--version")
    binary = shutil.which("promtool")
    assert binary is not None
    text = httpx.get(metrics_url, timeout=60).text
    ours = "".join(line for line in text.splitlines(True) if "vllm:" not in line)
    ran = subprocess.run(
        [binary, "check", "metrics"], input=ours, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")

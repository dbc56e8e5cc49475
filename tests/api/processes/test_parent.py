"""Real servers of two API processes: one port, one engine, one set of metrics."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.api.engine_process import api_pids as api_pids_of
from tests.api.engine_process import engine_pid
from tests.api.scripted_engine import MODEL
from tests.api.server_process import ServerProcess

pytestmark = pytest.mark.check

CHAT = "/v1/chat/completions"
PATIENCE_S = 120
BODY: Any = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
ENDLESS = BODY | {"stream": True, "max_tokens": 3000, "ignore_eos": True}
TRIES = 200


@pytest.fixture
def server(start_server: Callable[..., ServerProcess]) -> ServerProcess:
    return start_server("--kv-cache-bytes", "8MiB", "--api-server-count", "2")


def api_pids(server: ServerProcess) -> set[int]:
    return api_pids_of(server.process.pid)


def client(server: ServerProcess) -> httpx.Client:
    """One connection, and so one process, for all its requests."""
    return httpx.Client(base_url=server.url, timeout=PATIENCE_S)


def owner_of(server: ServerProcess, port: int) -> int:
    """The process that holds the server's end of a connection from `port`."""
    there = int(server.url.rpartition(":")[2])
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if [int(words[1][-4:], 16), int(words[2][-4:], 16)] == [there, port]:
            for pid in api_pids(server):
                for link in Path(f"/proc/{pid}/fd").iterdir():
                    if os.readlink(link) == f"socket:[{words[9]}]":
                        return pid
    raise AssertionError("nobody holds the connection")


def port_of(response: httpx.Response) -> int:
    port: int = response.extensions["network_stream"].get_extra_info("client_addr")[1]
    return port


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def totals(url: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def snapshot(url: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{url}/server_info").json()["snapshot"]
    return found


def streams(server: ServerProcess) -> Iterator[tuple[int, Iterator[str], httpx.Client]]:
    """Endless streams on connections of their own: (process, lines, client)."""
    for _ in range(TRIES):
        own = client(server)
        request = own.build_request("POST", CHAT, json=ENDLESS)
        response = own.send(request, stream=True)
        lines = response.iter_lines()
        next(lines)
        yield owner_of(server, port_of(response)), lines, own


def test_two_processes_one_engine(server: ServerProcess) -> None:
    before = totals(server.url)
    assert before["winnow_api_resident_bytes"] > 1.5 * before["process_resident_memory_bytes"], (
        "of two processes, and not of their parent"
    )
    assert before["winnow_engine_up"] == before["winnow_ready"] == 1
    assert len(api_pids(server)) == 2 and engine_pid(server.process.pid) is not None

    def ask(number: int) -> int:
        with client(server) as own:
            answer = own.post(CHAT, json=BODY | {"ignore_eos": True})
            tokens: int = answer.json()["usage"]["completion_tokens"]
            return tokens

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(24))) == [4] * 24
    seen = {"winnow_finished_choices_total": 24, "winnow_first_tokens_total": 24}
    until(lambda: all(totals(server.url)[k] - before[k] == n for k, n in seen.items()))

    # A process dies: its own streams end, the other's go on, its pages come back.
    running: dict[int, tuple[Iterator[str], httpx.Client]] = {}
    for pid, lines, own in streams(server):
        if pid in running:
            own.close()
        running.setdefault(pid, (lines, own))
        if len(running) == 2:
            break
    assert running.keys() == api_pids(server)
    until(lambda: snapshot(server.url)["running"] == 2)
    counted = totals(server.url)
    harmed, spared = running
    os.kill(harmed, signal.SIGKILL)
    with pytest.raises(httpx.TransportError):
        for _ in running[harmed][0]:
            pass
    until(lambda: len(api_pids(server) - {harmed}) == 2)
    line = next(line for line in running[spared][0] if line)
    assert line.startswith("data: {") and "error" not in line

    def alone() -> bool:
        try:
            return snapshot(server.url)["running"] == 1
        except httpx.TransportError:  # went to the dead one's socket
            return False

    until(alone)
    running[spared][1].close()
    until(lambda: snapshot(server.url)["live_pages"] == 0)
    until(lambda: totals(server.url)["winnow_http_requests_in_flight"] <= 1)
    after = totals(server.url)
    for name in ("winnow_finished_choices_total", "winnow_first_tokens_total"):
        assert after[name] >= counted[name]
    assert after["winnow_engine_restarts_total"] == 0
    assert after["winnow_api_process_restarts_total"] == 1

    # The engine dies: both processes find the next one.
    engine = engine_pid(server.process.pid)
    assert engine is not None
    os.kill(engine, signal.SIGKILL)
    until(lambda: engine_pid(server.process.pid) not in (None, engine))
    until(lambda: totals(server.url)["winnow_engine_restarts_total"] == 1)

    def all_ready() -> bool:
        return all(httpx.get(f"{server.url}/ready").status_code == 200 for _ in range(16))

    until(all_ready)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(16))) == [4] * 16
    assert len(api_pids(server)) == 2
    assert server.close() == 0
    assert not api_pids(server)


def test_a_tool_turn_is_known_in_every_process(start_server: Callable[..., ServerProcess]) -> None:
    server = start_server(
        *("--kv-cache-bytes", "8MiB", "--api-server-count", "2", "--max-reasoning-tokens", "4")
    )
    weather = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Oslo", "Rome"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    body = BODY | {"tools": [weather], "tool_choice": "required", "max_tokens": 300}
    body |= {"thinking": {"type": "enabled"}, "parallel_tool_calls": False}
    answer = httpx.post(server.url + CHAT, json=body, timeout=PATIENCE_S).json()
    assert answer["choices"][0]["finish_reason"] == "tool_calls", answer

    def turns() -> dict[int, int]:
        found = {}
        with client(server) as own:
            info = own.get("/server_info")
            store = info.json()["conversations"]["reasoning_store"]
            found[owner_of(server, port_of(info))] = store["turns"]
        return found

    known: dict[int, int] = {}

    def known_to_both() -> bool:
        known.update(turns())
        return sorted(known.values()) == [1, 1]

    until(known_to_both)


def test_they_end_with_their_parent(server: ServerProcess) -> None:
    left = {*api_pids(server), engine_pid(server.process.pid)}
    server.process.kill()
    server.process.wait(PATIENCE_S)
    until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in left))

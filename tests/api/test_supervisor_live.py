"""A real server whose engine is killed, stopped and killed too often."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.api.engine_process import engine_pid
from tests.api.scripted_engine import MODEL
from tests.api.server_process import ServerProcess

pytestmark = pytest.mark.check

CHAT = "/v1/chat/completions"
PATIENCE_S = 120
STREAMS = 3
SILENCE_S = "3"
ENDLESS: Any = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Hi"}],
    "stream": True,
    "max_tokens": 3000,
    "ignore_eos": True,
}


class Stream:
    """A streamed answer, read by a thread to its end."""

    def __init__(self, url: str) -> None:
        self.events: list[str] = []
        self.begun = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(url,))
        self._thread.start()

    def _read(self, url: str) -> None:
        with httpx.stream("POST", url + CHAT, json=ENDLESS, timeout=PATIENCE_S) as response:
            for line in response.iter_lines():
                if line.startswith("data: "):
                    self.events.append(line.removeprefix("data: "))
                    self.begun.set()

    def end(self) -> list[str]:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        return self.events


@pytest.fixture
def server(start_server: Callable[..., ServerProcess]) -> ServerProcess:
    return start_server(
        *("--kv-cache-bytes", "8MiB", "--silence-limit-s", SILENCE_S),
        *("--max-engine-restarts", "2"),
    )


def counters(url: str) -> dict[tuple[str, ...], float]:
    text = httpx.get(f"{url}/metrics").text
    return {
        (sample.name, *map(str, sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if family.type in ("counter", "histogram")
        and not sample.name.startswith(("process_", "winnow_last"))
        and not sample.name.endswith("_created")
    }


def until_ready(url: str) -> Iterator[int]:
    """The answers of /ready until it is 200; hangs, and so fails, if it never is."""
    while True:
        yield (status := httpx.get(f"{url}/ready").status_code)
        if status == 200:
            return
        assert httpx.get(f"{url}/health").status_code == 200, "an orchestrator must let it be"


def test_every_request_hears_of_the_death_and_the_next_engine_answers(
    server: ServerProcess,
) -> None:
    before = counters(server.url)
    for number, kind in enumerate((signal.SIGKILL, signal.SIGSTOP), start=1):
        streams = [Stream(server.url) for _ in range(STREAMS)]
        for stream in streams:
            assert stream.begun.wait(PATIENCE_S)
        harmed = engine_pid(server.process.pid)
        assert harmed is not None
        os.kill(harmed, kind)
        for stream in streams:
            events = stream.end()
            failed = [event for event in events if "error" in json.loads(event)]
            assert failed == events[-1:], "one error, and nothing behind it"
            assert json.loads(failed[0])["error"]["code"] == "engine_dead"
        refusals = list(until_ready(server.url))
        assert set(refusals[:-1]) <= {503}
        assert engine_pid(server.process.pid) not in (None, harmed)
        answer = httpx.post(
            server.url + CHAT,
            json=ENDLESS | {"stream": False, "max_tokens": 5},
            timeout=PATIENCE_S,
        )
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 5
        after = counters(server.url)
        assert {name for name, value in before.items() if after[name] < value} == set()
        restarts = [value for name, value in after.items() if "engine_restarts" in name[0]]
        assert restarts == [number]
        before = after
    third = engine_pid(server.process.pid)
    assert third is not None
    os.kill(third, signal.SIGKILL)
    assert server.process.wait(PATIENCE_S) == 1, "a death too many: somebody else has to decide"
    assert server.close() == 1
    assert "death 3, 2 allowed within 600 s" in server.log


def test_a_signal_to_stop_while_the_engine_is_replaced(server: ServerProcess) -> None:
    harmed = engine_pid(server.process.pid)
    assert harmed is not None
    os.kill(harmed, signal.SIGKILL)
    while httpx.get(f"{server.url}/ready").status_code == 200:
        pass
    assert server.close() == 0
    assert engine_pid(server.process.pid) is None

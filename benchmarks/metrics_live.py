"""A live server: the gaps of a stream beside a scraper that never pauses, and engines that die."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import numpy as np

from benchmarks.serving import server, winnow_command

PERCENTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9, "longest": 100.0}
CHAT = "/v1/chat/completions"
EVENT = b"data: {"
BEGIN_EVENTS = 50
"""Of a stream, whose gaps do not count: its beginning is something else."""
RETRY_S = 0.05


class Live(msgspec.Struct, frozen=True):
    """Gaps between the chunks of a stream, at PERCENTILES, and times to recover."""

    gaps: int
    """Of the streams that had no scraper beside them; as many of the others."""
    alone_s: list[float]
    scraped_s: list[float]
    scrapes_per_s: float
    series: int
    recoveries_s: list[float]


def measure_live(folder: Path, *, phases: int, tokens: int, kills: int, threads: int) -> Live:
    """Streams `tokens` tokens `phases` times with a scraper and as often without; then kills the
    engine `kills` times."""
    command = winnow_command(folder, threads)
    with server([*command, "--max-engine-restarts", str(kills)], "/ready", threads=threads) as url:
        model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        stream_gaps(url, model, tokens)
        alone: list[float] = []
        scraped: list[float] = []
        scrapes, series, seconds = 0, 0, 0.0
        for number in range(phases):
            for beside in (False, True) if number % 2 else (True, False):
                if not beside:
                    alone += stream_gaps(url, model, tokens)
                    continue
                begin_s = time.perf_counter()
                with Scraper(url) as scraper:
                    scraped += stream_gaps(url, model, tokens)
                seconds += time.perf_counter() - begin_s
                scrapes += scraper.scrapes
                series = scraper.series
        recoveries_s = [recovery_s(url, model) for _ in range(kills)]
    return Live(
        gaps=len(alone),
        alone_s=_percentiles(alone),
        scraped_s=_percentiles(scraped),
        scrapes_per_s=scrapes / seconds,
        series=series,
        recoveries_s=recoveries_s,
    )


class Scraper:
    """One in a process of its own, so that it delays the server and not the clock."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        command = [sys.executable, "-m", "benchmarks.scraper"]
        self._process = subprocess.Popen(
            [*command, str(address.hostname), str(address.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.scrapes = self.series = 0

    def __enter__(self) -> Scraper:
        return self

    def __exit__(self, *_: object) -> None:
        told = self._process.communicate("end\n", timeout=60)[0]
        self.scrapes, self.series = map(int, told.split())


def stream_gaps(url: str, model: str, tokens: int) -> list[float]:
    """Returns the seconds between the chunks of one streamed answer, its beginning left out."""
    address = urlsplit(url)
    body = _body(model, tokens) | {"stream": True, "ignore_eos": True}
    content = json.dumps(body).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: {address.netloc}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    moments, rest, whole = [], b"", b""
    with socket.create_connection((str(address.hostname), address.port), timeout=600) as connection:
        connection.sendall(head.encode() + content)
        while data := connection.recv(1 << 16):
            now_s = time.perf_counter()
            # An event may begin in one piece and go on in the next.
            if EVENT in rest + data:
                moments.append(now_s)
            rest = data[-len(EVENT) + 1 :]
            whole = (whole + data)[-200:]
    if b"[DONE]" not in whole:
        raise RuntimeError(f"no stream: {whole!r}")
    return list(np.diff(moments[BEGIN_EVENTS:]))


def recovery_s(url: str, model: str) -> float:
    """Kills the engine; returns the seconds to the next answer."""
    pid = engine_of(os.getpid())
    if pid is None:
        raise RuntimeError("the server has no engine")
    begin_s = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    while _command(pid):
        pass  # it has not ended yet, and an answer of the dead would not count
    with httpx.Client(base_url=url, timeout=60) as client:
        while client.post(CHAT, json=_body(model, 1)).status_code != 200:
            time.sleep(RETRY_S)
    return time.monotonic() - begin_s


def engine_of(pid: int) -> int | None:
    """Returns the engine that a process, or one of those it has started, has started (Linux)."""
    for child in _children(pid):
        words = _command(child)
        if "engine" in words:
            return child
        if "serve" in words and (found := engine_of(child)) is not None:
            return found
    return None


def _children(pid: int) -> Iterator[int]:
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        yield from map(int, tasks.read_text().split())


def _command(pid: int) -> list[str]:
    """Words of its command line; none once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    except OSError:
        return []


def _body(model: str, tokens: int) -> dict[str, Any]:
    message = {"role": "user", "content": "Tell me of the harvest."}
    return {"model": model, "messages": [message], "max_tokens": tokens}


def _percentiles(seconds: list[float]) -> list[float]:
    return [float(np.percentile(seconds, share)) for share in PERCENTILES.values()]

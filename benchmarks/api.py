"""What a stream costs the API process, beside the least that streams the same.

Processor seconds are those of the server process alone, so the clients here do not count, and a
busy machine changes them little.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from statistics import median

import httpx
import msgspec

from benchmarks.report import table
from benchmarks.sections import Section
from benchmarks.server_usage import IDLE, MODEL, Usage, raise_file_limit

SERVERS = ("bare", "winnow")
WARM_UP_STREAMS = 32
SHORTER = 8
"""How many times shorter the streams are that tell what a request costs."""
EVENT = b"data: {"
HEADERS_END = b"\r\n\r\n"
READ_BYTES = 1 << 20


class StreamCost(msgspec.Struct, frozen=True, kw_only=True):
    """Streams that all run at once, and streams that wait, in one server."""

    who: str
    streams: int
    tokens: int
    """Of each; every token is an event."""
    request_s: float
    """Processor seconds of the server process for a request, all but its events."""
    event_s: float
    """For an event."""
    idle_streams: int
    idle_bytes: int
    """Resident memory that they added."""


def section(options: argparse.Namespace) -> Section:
    """Returns the cost of both servers' streams, and their ratio."""
    raise_file_limit()
    found = measure(
        SERVERS,
        streams=options.streams,
        tokens=options.tokens,
        idle=options.idle,
        rounds=options.rounds,
    )
    bare, winnow = found
    rows = [
        [
            one.who,
            f"{one.request_s * 1e6:,.0f}",
            f"{one.event_s * 1e6:.1f}",
            f"{one.event_s / bare.event_s:.2f}",
            f"{one.idle_bytes / 1e6:.1f}",
        ]
        for one in found
    ]
    header = ["server", "µs a request", "µs an event", "of bare", "idle MB"]
    text = (
        f"{options.streams} streams of {options.tokens} tokens at once, one event a token, the two "
        f"servers in turn, medians of {options.rounds}; then {options.idle:,} streams that wait. "
        f"A token costs winnow {winnow.event_s / bare.event_s:.2f} times what it costs the bare "
        "server.\n\n"
    )
    return Section("Streams", text + table(header, rows), found)


def measure(
    servers: Sequence[str], *, streams: int, tokens: int, idle: int, rounds: int
) -> list[StreamCost]:
    """Returns what `streams` streams of `tokens` tokens cost each server, and then `idle` ones that
    wait.

    Shorter streams tell what of the cost is that of events. The servers take turns, so that a
    machine that changes its speed meanwhile does so for all of them.
    """
    short = max(1, tokens // SHORTER)
    with ExitStack() as running:
        ports = [running.enter_context(server(who)) for who in servers]
        for port in ports:
            _stream(port, WARM_UP_STREAMS, tokens)
        seconds = [
            [[_processor_s(port, streams, length) for length in (short, tokens)] for port in ports]
            for _ in range(rounds)
        ]
        found = []
        for who, port, rounds_s in zip(servers, ports, zip(*seconds, strict=True), strict=True):
            short_s, long_s = (median(own) for own in zip(*rounds_s, strict=True))
            event_s = (long_s - short_s) / (streams * (tokens - short))
            resident_bytes = used(port).resident_bytes
            waiting_bytes = asyncio.run(_wait(port, idle)) - resident_bytes
            found.append(
                StreamCost(
                    who=who,
                    streams=streams,
                    tokens=tokens,
                    request_s=short_s / streams - short * event_s,
                    event_s=event_s,
                    idle_streams=idle,
                    idle_bytes=max(0, waiting_bytes),
                )
            )
    return found


def _processor_s(port: int, streams: int, tokens: int) -> float:
    before = used(port)
    _stream(port, streams, tokens)
    return used(port).processor_s - before.processor_s


@contextmanager
def server(who: str) -> Iterator[int]:
    """Runs one of the servers until the block ends; yields its port."""
    command = [sys.executable, "-m", "benchmarks.api_servers", who]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"the {who} server did not start")
            yield int(line)
        finally:
            process.kill()


def used(port: int) -> Usage:
    """Returns what the server has used."""
    answer = httpx.get(f"http://127.0.0.1:{port}/usage", timeout=600)
    return msgspec.json.decode(answer.content, type=Usage)


def request(tokens: int, priority: int) -> bytes:
    """Returns a request whose connection ends with its answer."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Tell me of the harvest."}],
        "max_tokens": tokens,
        "priority": priority,
        "stream": True,
    }
    content = msgspec.json.encode(body)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def _open(port: int, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    return reader, writer


def _stream(port: int, streams: int, tokens: int) -> None:
    """Reads that many streams to their ends.

    One is read after the other, out of the kernel's buffers: a reader that waits has to be woken
    for every event, which the kernel charges to the sender, and to a slow sender more often.
    """
    data = request(tokens, 0)
    with ExitStack() as opened:
        connections = [
            opened.enter_context(socket.create_connection(("127.0.0.1", port)))
            for _ in range(streams)
        ]
        for connection in connections:
            connection.sendall(data)
        for connection in connections:
            _read(connection, tokens)


def _read(connection: socket.socket, tokens: int) -> None:
    answer = bytearray()
    while data := connection.recv(READ_BYTES):
        answer += data
    if not answer.startswith(b"HTTP/1.1 200") or b"data: [DONE]" not in answer:
        raise RuntimeError(f"no stream: {bytes(answer[:500])!r}")
    if answer.count(EVENT) < tokens:
        raise RuntimeError(f"{answer.count(EVENT)} events for {tokens} tokens")


async def _wait(port: int, streams: int) -> int:
    """Returns the resident bytes of the server while that many streams wait for a first token."""
    data = request(1, IDLE)
    opened = await asyncio.gather(*(_open(port, data) for _ in range(streams)))
    await asyncio.gather(*(reader.readuntil(HEADERS_END) for reader, _ in opened))
    resident = (await asyncio.to_thread(used, port)).resident_bytes
    for _, writer in opened:
        writer.close()
    return resident

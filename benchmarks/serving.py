"""Clients over HTTP: time to the first token and tokens per second, of any OpenAI-style server."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Barrier

import httpx
import msgspec
from tokenizers import Tokenizer

from api.chat.markers import ASSISTANT, BOS, THINK_END, USER
from benchmarks.step import prompt

START_LIMIT_S = 300.0
CHAT_TEMPLATE = (
    f"{BOS}{{% for message in messages %}}"
    f"{USER}{{{{ message.content }}}}{ASSISTANT}{THINK_END}"
    "{% endfor %}"
)
"""DeepSeek's format of a message, for servers that need one in the checkpoint; built into ours."""


class ServingError(RuntimeError):
    """A server did not start, or did not answer as it was asked to."""


class ServingTimes(msgspec.Struct, frozen=True, kw_only=True):
    """One server under `clients` clients, each with one request after the other."""

    who: str
    clients: int
    prompt_tokens: int
    """Of the message, without the server's chat format."""
    burst_p50_s: float
    """Until the first token of the clients' first requests, which start together."""
    burst_max_s: float
    later_p50_s: float | None
    """Until the first token of the requests after them; None where there are none."""
    tokens_per_s: float
    """Of all clients together."""


@contextmanager
def server(command: list[str], ready: str, *, threads: int) -> Iterator[str]:
    """Runs `command`, with {port} filled in, until the block ends; yields its address.

    ready: the path that answers 200 when the model is loaded. Raises ServingError with the end of
    the server's output when it stops or is not ready in START_LIMIT_S.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile("w+") as log:
        arguments = [part.format(port=port) for part in command]
        process = subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            limit = time.monotonic() + START_LIMIT_S
            while not _answers(address + ready):
                if process.poll() is not None or time.monotonic() > limit:
                    log.seek(0)
                    raise ServingError(f"{command[0]} is not ready:\n{log.read()[-2000:]}")
                time.sleep(0.2)
            yield address
        finally:
            process.terminate()
            process.wait(30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10).status_code == 200
    except httpx.TransportError:
        return False


def winnow_command(folder: Path, threads: int) -> list[str]:
    """The command that serves `folder` with this repository."""
    command = [sys.executable, "-m", "winnow", "serve", "--model", str(folder), "--port", "{port}"]
    return [*command, "--threads", str(threads)]


def transformers_command(folder: Path) -> list[str]:
    """The command that serves `folder` with transformers of the same environment."""
    program = str(Path(sys.executable).parent / "transformers")
    return [program, "serve", str(folder), "--device", "cpu", "--port", "{port}"]


def add_chat_template(folder: Path) -> None:
    """Puts CHAT_TEMPLATE into the folder's tokenizer_config.json."""
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": CHAT_TEMPLATE}))


def messages(folder: Path, tokens: int) -> Iterator[str]:
    """Yields messages without end, each another one, of exactly `tokens` tokens of the folder's
    tokenizer: random ids as text, which is cut, since encoding it again takes more of them."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for seed in count():
        text = tokenizer.decode(prompt(tokens, tokenizer.get_vocab_size(), seed))
        while len(ids := tokenizer.encode(text, add_special_tokens=False)) > tokens:
            text = text[: min(ids.offsets[tokens][0], len(text) - 1)]
        if len(ids) == tokens:
            yield text


def measure(
    who: str,
    address: str,
    model: str,
    news: Iterator[str],
    *,
    clients: int,
    requests: int,
    prompt_tokens: int,
    tokens: int,
) -> ServingTimes:
    """Returns the times of `clients` clients that start together and send `requests` each.

    news: messages that the server has not seen, so that no cached prefix helps. One request
    before is not counted.
    """
    ready = Barrier(clients)

    def client(texts: list[str]) -> list[tuple[float, int]]:
        with httpx.Client(timeout=600) as http:
            ready.wait()
            return [_request(http, address, model, text, tokens) for text in texts]

    with httpx.Client(timeout=600) as http:
        _request(http, address, model, next(news), tokens)
    texts = [[next(news) for _ in range(requests)] for _ in range(clients)]
    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(client, texts))
    seconds = time.perf_counter() - begin
    burst = [each[0][0] for each in answers]
    later = [first for each in answers for first, _ in each[1:]]
    return ServingTimes(
        who=who,
        clients=clients,
        prompt_tokens=prompt_tokens,
        burst_p50_s=statistics.median(burst),
        burst_max_s=max(burst),
        later_p50_s=statistics.median(later) if later else None,
        tokens_per_s=sum(made for each in answers for _, made in each) / seconds,
    )


def _request(
    http: httpx.Client, address: str, model: str, message: str, tokens: int
) -> tuple[float, int]:
    """Streams one answer; returns the seconds to its first text and its tokens.

    Tokens as the server counts them; a server that does not say gets one for each piece of text.
    Raises ServingError for a refusal and for an answer without text.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": message}],
        "max_tokens": tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    first, pieces, counted = 0.0, 0, None
    begin = time.perf_counter()
    with http.stream("POST", f"{address}/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise ServingError(f"{address} answered {response.status_code}: {response.read()!r}")
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            counted = (chunk.get("usage") or {}).get("completion_tokens", counted)
            for choice in chunk.get("choices", []):
                delta = choice.get("delta") or {}
                if any(delta.get(field) for field in ("content", "reasoning_content")):
                    first = first or time.perf_counter() - begin
                    pieces += 1
    if not pieces:
        raise ServingError(f"{address} answered without any text, {counted or 0} tokens")
    return first, pieces if counted is None else counted

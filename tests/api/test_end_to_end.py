"""A real server, a real engine, a random model: what comes over the socket, and what is left after.

The issue's table of bad input stands here. Every test ends with the same count: no live page, and
live + idle + free pages = all pages.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from tests.api.scripted_engine import MODEL
from tests.api.server_process import ServerProcess

USER: Any = [{"role": "user", "content": "Hello"}]
CHAT = "/v1/chat/completions"
PATIENCE_S = 60


@pytest.fixture
def url(server: ServerProcess) -> Iterator[str]:
    """The server's address; afterwards its pages are counted."""
    yield server.url
    assert_all_pages_are_back(server.url)


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def snapshot(url: str) -> dict[str, Any]:
    """The engine's last snapshot; the first one comes shortly after the model is ready."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found: dict[str, Any] | None = httpx.get(f"{url}/server_info").json()["snapshot"]
        if found is not None:
            return found
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_all_pages_are_back(url: str) -> None:
    """Waits for a snapshot at rest; the engine sends a few each second."""
    deadline = time.monotonic() + PATIENCE_S
    found = snapshot(url)
    while found["running"] or found["waiting"] or found["live_pages"]:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
        found = snapshot(url)
    idle = sum(found["idle_pages"].values())
    assert found["live_pages"] + idle + found["free_pages"] == found["total_pages"]


def wait_until_running(url: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not snapshot(url)["running"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def post(url: str, content: bytes) -> httpx.Response:
    return httpx.post(url + CHAT, content=content, timeout=PATIENCE_S)


def body(**fields: Any) -> bytes:
    return json.dumps({"model": MODEL, "messages": USER} | fields).encode()


@pytest.mark.parametrize(
    ("content", "status", "param"),
    [
        (b"", 400, None),
        (b"{", 400, None),
        (b'{"model": "deepseek-random", "messages": [', 400, None),
        (b"[1, 2]", 400, None),
        (b"[" * 50_000, 400, None),
        (b'{"model": "\xff\xfe"}', 400, None),
        (body(messages="Hello"), 400, "messages"),
        (body(messages=[{"role": "user", "content": 7}]), 400, "messages[0].content"),
        (body(temperature="hot"), 400, "temperature"),
        (body(stream="yes"), 400, "stream"),
        (body(model="gpt-5"), 404, "model"),
        (body(model=None), 400, "model"),
        (body(messages=[]), 400, "messages"),
        (body(messages=[*USER, {"role": "tool", "content": "x"}]), 400, "messages[1].tool_call_id"),
        (
            body(messages=[*USER, {"role": "tool", "content": "x", "tool_call_id": "a"}]),
            400,
            "messages[1].role",
        ),
        (body(messages=[{"role": "user", "content": "long " * 4000}]), 400, "messages"),
        (body(n=0), 400, "n"),
        (body(n=10**9), 400, "n"),
        (body(max_tokens=0), 400, "max_tokens"),
        (body(max_tokens=-5), 400, "max_tokens"),
        (body(max_tokens=10**18), 400, "max_tokens"),
        (body(max_completion_tokens=2.5), 400, "max_completion_tokens"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_input_is_refused_by_name(
    url: str, content: bytes, status: int, param: str | None, stream: bool
) -> None:
    if stream and content.endswith(b"}"):
        content = b'{"stream": true, ' + content[1:]
    response = post(url, content)
    assert response.status_code == status
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert error["message"]


def test_a_prompt_over_the_window_has_its_code(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "x" * 20_000}]
        )
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("stated", [True, False])
def test_a_body_of_100_mb_is_refused(url: str, stated: bool) -> None:
    def megabytes() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 10**6

    headers = {"content-length": str(100 * 10**6)} if stated else {}
    response = httpx.post(url + CHAT, content=megabytes(), headers=headers, timeout=PATIENCE_S)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


def test_who_asks_before_sending_too_much_is_told_at_once(url: str) -> None:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=PATIENCE_S) as peer:
        peer.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n"
            "Expect: 100-continue\r\n\r\n".encode()
        )
        assert peer.recv(100).startswith(b"HTTP/1.1 413")


def test_a_client_that_stops_sending_is_no_trouble(url: str) -> None:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port)) as peer:
        peer.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n{{".encode())


def test_the_stream_joined_is_the_answer(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {
        "model": MODEL,
        "messages": USER,
        "temperature": 0,
        "max_tokens": 60,
        "logprobs": True,
    }
    whole = client.chat.completions.create(**settings)
    with client.chat.completions.stream(
        **settings, stream_options={"include_usage": True}
    ) as stream:
        streamed = stream.get_final_completion()
    assert streamed.choices[0].message.content == whole.choices[0].message.content
    assert streamed.choices[0].finish_reason == whole.choices[0].finish_reason
    assert streamed.choices[0].logprobs is not None and whole.choices[0].logprobs is not None
    assert [e.bytes for e in streamed.choices[0].logprobs.content or ()] == [
        e.bytes for e in whole.choices[0].logprobs.content or ()
    ]
    assert streamed.usage is not None and whole.usage is not None
    assert streamed.usage.completion_tokens == whole.usage.completion_tokens


def test_choices_differ_and_a_seed_repeats_them(client: openai.OpenAI) -> None:
    def answers() -> list[str | None]:
        answer = client.chat.completions.create(
            model=MODEL, messages=USER, n=3, seed=7, max_tokens=30, temperature=1.5
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content for choice in answer.choices]

    first = answers()
    assert len(set(first)) == 3
    assert answers() == first


def test_a_stop_string_ends_the_engines_work(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"model": MODEL, "messages": USER, "temperature": 0}
    content = client.chat.completions.create(**settings, max_tokens=40).choices[0].message.content
    assert content is not None
    stop = next(c for c in content[5:] if c.isascii() and c not in content[:5])
    answer = client.chat.completions.create(**settings, stop=stop)
    assert answer.choices[0].message.content == content[: content.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.completion_tokens <= 40


def test_a_biased_token_is_all_there_is(client: openai.OpenAI) -> None:
    entry = client.chat.completions.create(
        model=MODEL,
        messages=USER,
        max_tokens=3,
        temperature=0,
        logit_bias={"100": 100},
        logprobs=True,
        top_logprobs=2,
    )
    (choice,) = entry.choices
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert len({bytes(token.bytes or ()) for token in choice.logprobs.content}) == 1
    assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)


def test_the_same_prompt_again_is_cached(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "cache " * 40}]
    for expected in (0, 192):
        usage = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=2).usage
        assert usage is not None and usage.prompt_tokens_details is not None
        assert usage.prompt_tokens_details.cached_tokens == expected


def test_a_client_that_leaves_mid_stream_frees_its_pages(url: str) -> None:
    with httpx.stream("POST", url + CHAT, content=body(stream=True, ignore_eos=True)) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        wait_until_running(url)
    assert_all_pages_are_back(url)


def test_a_client_that_leaves_before_the_answer_frees_its_pages(url: str) -> None:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port)
    connection.request("POST", CHAT, body(ignore_eos=True, n=4))
    wait_until_running(url)
    connection.close()
    assert_all_pages_are_back(url)


def test_two_hundred_clients_at_once(url: str) -> None:
    start = threading.Barrier(200)
    limits = httpx.Limits(max_connections=None)

    with httpx.Client(limits=limits, timeout=PATIENCE_S * 3) as shared:

        def ask(number: int) -> tuple[int, bytes]:
            start.wait()
            fields = {"max_tokens": 4, "stream": number % 2 == 0, "seed": number}
            response = shared.post(url + CHAT, content=body(**fields))
            return response.status_code, response.content

        with ThreadPoolExecutor(200) as pool:
            answers = list(pool.map(ask, range(200)))
    assert {status for status, _ in answers} == {200}
    for number, (_, content) in enumerate(answers):
        if number % 2 == 0:
            assert content.endswith(b"data: [DONE]\n\n")
        else:
            assert json.loads(content)["usage"]["completion_tokens"] <= 4


def test_more_than_the_queue_holds_gets_429(start_server: Callable[..., ServerProcess]) -> None:
    server = start_server(
        "--max-num-seqs", "1", "--max-queued-requests", "1", "--kv-cache-bytes", "2MiB"
    )
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

        def ask(**options: Any) -> Any:
            return client.chat.completions.create(model=MODEL, messages=USER, **options)

        endless = {"stream": True, "extra_body": {"ignore_eos": True}}
        with ask(**endless) as runs:
            next(runs)
            wait_until_running(server.url)
            with ask(**endless) as waits:
                next(waits)
                with pytest.raises(openai.RateLimitError) as caught:
                    ask()
                assert int(caught.value.response.headers["retry-after"]) >= 1
        assert_all_pages_are_back(server.url)
        assert ask(max_tokens=2).usage.completion_tokens <= 2
    assert_all_pages_are_back(server.url)


def test_a_killed_engine_is_told_and_replaced(
    start_server: Callable[..., ServerProcess],
) -> None:
    server = start_server("--kv-cache-bytes", "2MiB")
    with httpx.stream(
        "POST", server.url + CHAT, content=body(stream=True, ignore_eos=True), timeout=PATIENCE_S
    ) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        os.kill(engine_pid(server), signal.SIGKILL)
        rest = [line for line in lines if line]
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "engine_dead"
    deadline = time.monotonic() + PATIENCE_S
    while (refused := post(server.url, body(max_tokens=2))).status_code != 200:
        assert time.monotonic() < deadline
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "engine_dead"
        assert "retry-after" in refused.headers
        assert httpx.get(f"{server.url}/health").status_code == 200
        time.sleep(0.05)
    assert_all_pages_are_back(server.url)
    assert server.close() == 0


def engine_pid(server: ServerProcess) -> int:
    """The server's only child that is an engine."""
    (pid,) = [
        int(pid)
        for pid in os.listdir("/proc")
        if pid.isdigit() and _parent(pid) == server.process.pid and "engine" in _command(pid)
    ]
    return pid


def _parent(pid: str) -> int:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rsplit(")", 1)[1].split()[1])
    except OSError:
        return -1


def _command(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read()
    except OSError:
        return ""

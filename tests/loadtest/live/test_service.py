"""The server before a run: found, named, measured; or why not."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from loadtest.live.service import ServiceError, find_service
from tests.loadtest.live.chat_server import (
    MODEL,
    TOKENS_PER_WORD,
    Refusal,
    chat_server,
    delta,
    obedient,
)
from tests.loadtest.live.test_scrape import exposition


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
def test_a_server_is_found_and_its_words_counted(path: str) -> None:
    with chat_server() as server:
        service = find_service(server.url + path)
        assert len(server.bodies) == 2
    assert service.model == MODEL and service.window_tokens == 4096
    assert service.tokens_per_word == TOKENS_PER_WORD and service.counts_tokens
    assert service.metrics is None and not service.extensions


def test_winnow_is_known_by_its_cost_series() -> None:
    with chat_server(metrics=exposition) as server:
        service = find_service(server.url)
        assert str(service.metrics) == server.url + "/metrics" and service.extensions
        assert not find_service(server.url, extensions=False).extensions
        with pytest.raises(ServiceError, match="has no cost series of Winnow's"):
            find_service(server.url, metrics_url=server.url + "/v1/models")
        with pytest.raises(ServiceError, match=r"metrics: .*allowed: http"):
            find_service(server.url, metrics_url="localhost")


def test_a_server_that_counts_no_tokens() -> None:
    with chat_server(lambda _: [delta(content="a"), b"data: [DONE]\n\n"]) as server:
        service = find_service(server.url)
    assert not service.counts_tokens and service.tokens_per_word == 1.3


def test_a_key_is_asked_for_and_sent() -> None:
    with chat_server(key="sk-1") as server:
        with pytest.raises(ServiceError, match="answered 401: give a key with --api-key-file"):
            find_service(server.url)
        assert find_service(server.url, key="sk-1").headers == {"authorization": "Bearer sk-1"}


def test_one_of_several_models() -> None:
    with chat_server(models=({"id": "a"}, {"id": "b", "max_model_len": 128})) as server:
        with pytest.raises(ServiceError, match="serves a, b; choose one with --model"):
            find_service(server.url)
        with pytest.raises(ServiceError, match=r"model is 'c'; .* serves a, b"):
            find_service(server.url, model="c")
        assert find_service(server.url, model="b").window_tokens == 128
        assert find_service(server.url, model="a").window_tokens == 1 << 17


def test_nobody_is_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(ServiceError, match=f"no connection to {url}.*is the server running"):
        find_service(url)


def test_a_url_that_is_none() -> None:
    with pytest.raises(ServiceError, match="'localhost:8000'; allowed: http"):
        find_service("localhost:8000")


def test_no_models() -> None:
    with chat_server(models=()) as server, pytest.raises(ServiceError, match="lists no model"):
        find_service(server.url)


def test_something_else_answers() -> None:
    with chat_server() as server:
        with pytest.raises(ServiceError, match="/other/v1/models answered 404: not found"):
            find_service(server.url + "/other")
        server.models = ("no object",)  # type: ignore[assignment]
        with pytest.raises(ServiceError, match="no list of models in OpenAI's form"):
            find_service(server.url)


def refused(_: object) -> list[Any]:
    raise Refusal(400, b'{"error": {"code": "unsupported"}}')


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (refused, "not answered: refused, unsupported, HTTP 400"),
        (lambda _: [b'{"choices": []}'], "not answered: failed, no_end, HTTP 200"),
        (lambda body: [_constant(body)[0], b"data: [DONE]\n\n"], "counts 9 prompt tokens for 360"),
    ],
)
def test_what_does_not_stream_or_cannot_be_measured(reply: Any, said: str) -> None:
    with chat_server(reply) as server, pytest.raises(ServiceError, match=said):
        find_service(server.url)


def _constant(body: Any) -> list[Any]:
    assert obedient(body)
    return [{"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 1}}]

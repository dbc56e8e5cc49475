"""The chat client: what it writes into a sample, whatever the server does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from loadtest.live.answer import Answer
from loadtest.live.client import Client, error_text
from loadtest.live.exchange import Address
from loadtest.live.samples import NEVER, Sample
from tests.loadtest.live.chat_server import (
    Hangup,
    Refusal,
    chat_server,
    delta,
    finish,
    obedient,
    usage,
)


def asked(reply: Callable[[Any], list[Any]], **body: Any) -> tuple[Sample, Answer, list[Any]]:
    with chat_server(reply) as server:
        client = Client(Address.parse(server.url + "/v1"), fields={"model": "m"})
        sample = Sample("chat", 0.0, 0.0)
        message = {"role": "user", "content": "Say something"}
        answer = client.ask({"messages": [message], **body}, sample, time.perf_counter())
        client.connection.close()
        return sample, answer, server.bodies


def test_an_answer() -> None:
    sample, answer, bodies = asked(obedient, max_tokens=5)
    assert sample.outcome == "answered" and sample.status == 200 and not sample.error
    assert answer.content == "Hello there" and answer.reasoning == "hm"
    # Three chunks said something, of four tokens by the server's count.
    assert (len(sample.chunks_s), sample.output_tokens, sample.counted) == (3, 4, True)
    times = [sample.sent_s, sample.first_s, sample.last_s, sample.end_s]
    assert times == sorted(times) and sample.first_s == sample.chunks_s[0]
    assert sample.time_per_output_token_s == (sample.last_s - sample.first_s) / 3
    (body,) = bodies
    assert body["model"] == "m" and body["max_tokens"] == 5
    assert body["stream"] is True and body["stream_options"] == {"include_usage": True}


def test_one_token_has_no_time_per_token() -> None:
    sample, _, _ = asked(lambda body: [delta(content="a"), finish("stop"), usage(body, 1)])
    assert sample.outcome == "answered" and sample.time_per_output_token_s is None


def test_a_server_that_counts_nothing() -> None:
    sample, _, _ = asked(lambda _: [delta(content="a"), delta(content="b"), b"data: [DONE]\n\n"])
    assert sample.outcome == "answered" and not sample.counted and sample.output_tokens == 2


def refuse(status: int, body: bytes, **headers: str) -> Callable[[Any], list[Any]]:
    def reply(_: object) -> list[Any]:
        raise Refusal(status, body, {name.replace("_", "-"): one for name, one in headers.items()})

    return reply


@pytest.mark.parametrize(
    ("reply", "error", "retry_s"),
    [
        (refuse(429, b'{"error": {"code": "queue_full"}}', retry_after="3"), "queue_full", 3.0),
        (
            refuse(429, b'{"error": {"type": "busy"}}', retry_after="9", retry_after_ms="250"),
            "busy",
            0.25,
        ),
        (refuse(503, b"<html>", retry_after="Wed, 21 Oct 2026 07:28:00 GMT"), "http_503", 0.0),
        (refuse(500, b'{"error": "text"}'), "http_500", 0.0),
        (refuse(400, b'{"error": {"code": "' + b"x" * 500 + b'"}}'), "x" * 60, 0.0),
        (refuse(502, b"[]", retry_after="-1"), "http_502", 0.0),
    ],
)
def test_a_refusal_is_counted_by_its_code(
    reply: Callable[[Any], list[Any]], error: str, retry_s: float
) -> None:
    sample, _, _ = asked(reply)
    assert (sample.outcome, sample.error, sample.retry_after_s) == ("refused", error, retry_s)
    assert sample.end_s >= sample.sent_s and sample.first_s == NEVER


@pytest.mark.parametrize(
    ("events", "error", "chunks"),
    [
        ([delta(content="a"), Hangup()], "closed", 1),
        ([delta(content="a")], "no_end", 1),
        ([b"data: {}}\n\n"], "broken_stream", 0),
        ([delta(content="a"), {"error": {"message": "engine died"}}], "broken_stream", 1),
        ([b"<html>"], "no_end", 0),
    ],
)
def test_half_an_answer_is_a_failure(events: list[Any], error: str, chunks: int) -> None:
    sample, _, _ = asked(lambda _: events)
    assert (sample.outcome, sample.error) == ("failed", error)
    assert len(sample.chunks_s) == chunks and sample.end_s >= sample.sent_s


def test_what_an_error_says_to_people() -> None:
    assert error_text(b'{"error": {"message": "too long"}}') == "too long"
    assert error_text(b'{"detail": "x"}') == "{'detail': 'x'}"
    assert error_text(b"<html>\xff") == "<html>\ufffd"

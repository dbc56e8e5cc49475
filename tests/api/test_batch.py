"""api.batch: OpenAI's batch format, bad lines included."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import msgspec
import pytest

import winnow
from api.batch import BatchCounts, run_batch
from api.errors import ApiError
from engine.client import EngineRefused
from engine.messages import Refused, Submit
from tests.api.scripted_engine import MODEL, Scripted


def line(custom_id: str, **fields: Any) -> bytes:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]} | fields
    return msgspec.json.encode(
        {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    )


def run(
    scripted: Scripted, lines: list[bytes], concurrency: int = 3
) -> tuple[BatchCounts, list[dict[str, Any]], int]:
    output = io.BytesIO()
    ticks: list[None] = []
    counts = asyncio.run(
        run_batch(
            scripted.service,
            lines,
            output,
            concurrency=concurrency,
            progress=lambda: ticks.append(None),
        )
    )
    results = [msgspec.json.decode(result) for result in output.getvalue().splitlines()]
    return counts, results, len(ticks)


@pytest.mark.parametrize("concurrency", [1, 3, 50])
def test_every_request_gets_its_answer(scripted: Scripted, concurrency: int) -> None:
    lines = [line(f"r{i}") + b"\n" for i in range(10)]
    counts, results, ticks = run(scripted, lines, concurrency)
    assert (counts.completed, counts.failed, ticks) == (10, 0, 10)
    assert {result["custom_id"] for result in results} == {f"r{i}" for i in range(10)}
    for result in results:
        assert result["error"] is None
        assert result["response"]["status_code"] == 200
        body = result["response"]["body"]
        assert body["choices"][0]["message"]["content"] == "Hello!"
        assert result["response"]["request_id"] == body["id"]


def test_bad_lines_do_not_stop_the_others(scripted: Scripted) -> None:
    lines = [
        b"{not json\n",
        b"\n",
        b'{"body": {}}\n',
        b'{"custom_id": "u", "method": "POST", "url": "/v1/embeddings", "body": {}}\n',
        line("w", n=0),
        line("s", stream=True),
        line("m", model="gpt-5"),
        line("good"),
        b'{"custom_id": "g", "method": "GET", "body": {}}\n',
    ]
    counts, results, ticks = run(scripted, lines)
    assert (counts.completed, counts.failed, ticks) == (1, 7, 8)
    unnamed = [result for result in results if result["custom_id"] is None]
    assert sorted(result["error"]["message"][:6] for result in unnamed) == ["line 1", "line 3"]
    named = {result["custom_id"]: result for result in results if result["custom_id"]}
    assert named["u"]["error"]["code"] == "invalid_url"
    assert named["g"]["error"]["code"] == "invalid_method"
    statuses = {name: named[name]["response"]["status_code"] for name in ("w", "s", "m", "good")}
    assert statuses == {"w": 400, "s": 400, "m": 404, "good": 200}
    assert named["w"]["response"]["body"]["error"]["param"] == "n"
    assert named["s"]["response"]["body"]["error"]["code"] == "invalid_value"
    assert scripted.engine.open == 0


def test_an_answer_belongs_to_one_line(scripted: Scripted) -> None:
    counts, results, _ = run(scripted, [line("twice"), line("once"), line("twice")])
    assert (counts.completed, counts.failed) == (2, 1)
    (refused,) = [result["error"] for result in results if result["error"]]
    assert refused["code"] == "duplicate_custom_id" and "line 1" in refused["message"]


def test_a_full_queue_is_waited_for(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines with many choices fill the queue of an offline run; none of them fails for it."""
    submit, refused = scripted.engine.submit, list[str]()

    async def full_at_first(request: Submit) -> Any:
        if len(refused) < 3:
            refused.append(request.id)
            raise EngineRefused(Refused(request.id, 429, "queue_full", "full", None, 0.01))
        return await submit(request)

    monkeypatch.setattr(scripted.engine, "submit", full_at_first)
    counts, results, _ = run(scripted, [line("a", n=3), line("b")], concurrency=2)
    assert (counts.completed, counts.failed, len(refused)) == (2, 0, 3)
    assert {result["response"]["status_code"] for result in results} == {200}


def test_a_dead_engine_ends_the_run(scripted: Scripted) -> None:
    scripted.engine.death = "killed"
    with pytest.raises(ApiError, match="killed"):
        run(scripted, [line("a"), line("b")])


def test_the_command_answers_a_file(random_model: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b"\n".join([line("a", max_tokens=4), line("b", n=0)]))
    options = ["--model", str(random_model), "--threads", "1", "--kv-cache-bytes", "2MiB"]
    status = winnow.main(["batch", str(source), str(target), *options])
    assert status == 1  # one line failed
    results = [msgspec.json.decode(result) for result in target.read_bytes().splitlines()]
    statuses = {r["custom_id"]: r["response"]["status_code"] for r in results}
    assert statuses == {"a": 200, "b": 400}


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert winnow.main(["batch", str(tmp_path / "missing"), str(tmp_path / "out")]) == 1
    assert "missing" in capsys.readouterr().err


def test_lines_ask_every_route_that_generates(scripted: Scripted) -> None:
    user = [{"role": "user", "content": "Hi"}]
    requests = {
        "/v1/chat/completions": {"messages": user},
        "/v1/completions": {"prompt": ["a", "b"], "echo": True},
        "/v1/responses": {"input": "Hi"},
        "/v1/messages": {"messages": user, "max_tokens": 50},
    }

    def of(url: str, custom_id: str, **fields: Any) -> bytes:
        body = {"model": MODEL, **requests[url], **fields}
        return msgspec.json.encode(
            {"custom_id": custom_id, "method": "POST", "url": url, "body": body}
        )

    lines = [of(url, url) for url in requests]
    lines += [of(url, f"bad {url}", temperature=9) for url in requests]
    counts, results, _ = run(scripted, lines)
    assert (counts.completed, counts.failed) == (4, 4)
    found = {result["custom_id"]: result["response"] for result in results}
    bodies = {url: found[url]["body"] for url in requests}
    assert bodies["/v1/chat/completions"]["object"] == "chat.completion"
    texts = [choice["text"] for choice in bodies["/v1/completions"]["choices"]]
    assert texts == ["aHello!", "bHello!"]
    assert bodies["/v1/responses"]["output"][0]["content"][0]["text"] == "Hello!"
    assert bodies["/v1/messages"]["content"] == [{"type": "text", "text": "Hello!"}]
    for url in requests:
        assert found[url]["request_id"] == bodies[url]["id"]
        refused = found[f"bad {url}"]
        assert refused["status_code"] == 400 and "temperature" in str(refused["body"])
    assert found["bad /v1/messages"]["body"]["type"] == "error"
    assert scripted.engine.open == 0

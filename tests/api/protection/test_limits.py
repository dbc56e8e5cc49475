"""api.protection.limits: requests in flight and tokens a minute of one key, over HTTP too."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from api.config import ServerConfig
from api.errors import ApiError
from api.protection.keys import KeyLimits
from api.protection.limits import Usage
from api.server import create_app
from engine.client import ConfigError
from tests.api.scripted_engine import MODEL, Scripted

CHAT = "/v1/chat/completions"
BODY: Any = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def refused(usage: Usage, limits: KeyLimits, tenant: str = "a") -> ApiError:
    with pytest.raises(ApiError) as caught:
        usage.enter(tenant, limits)
    assert caught.value.status == 429
    return caught.value


def test_requests_in_flight_are_counted_by_key() -> None:
    usage, limits = Usage(), KeyLimits(requests=2)
    usage.enter("a", limits)
    usage.enter("a", limits)
    error = refused(usage, limits)
    assert error.code == "too_many_requests" and error.headers["retry-after"] == "1"
    usage.enter("b", limits)
    usage.leave("a")
    usage.enter("a", limits)


def test_a_refused_request_is_not_in_flight() -> None:
    usage, limits = Usage(Clock()), KeyLimits(requests=1, tokens_per_minute=10)
    usage.charge("a", 10, limits)
    refused(usage, limits)
    usage.enter("a", KeyLimits(requests=1))


def test_used_tokens_come_back_steadily() -> None:
    clock = Clock()
    usage, limits = Usage(clock), KeyLimits(tokens_per_minute=60)
    usage.enter("a", limits)
    usage.charge("a", 89, limits)
    error = refused(usage, limits)
    assert error.code == "token_rate_exceeded" and error.retry_after == 30.0
    clock.now_s += 29
    assert refused(usage, limits).retry_after == 1.0
    clock.now_s += 1
    usage.enter("a", limits)
    # What was saved up is at most one minute's worth.
    clock.now_s += 3600
    usage.charge("a", 59, limits)
    usage.enter("a", limits)
    usage.charge("a", 1, limits)
    refused(usage, limits)


def test_no_limit_keeps_no_account() -> None:
    usage = Usage()
    usage.charge("a", 10**9, KeyLimits())
    usage.enter("a", KeyLimits())


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    file = tmp_path / "keys"
    file.write_text("one\ntwo requests=5\n")
    return str(file)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def client(scripted: Scripted, **config: Any) -> httpx.AsyncClient:
    app = create_app(scripted.backend, ServerConfig(**config))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://winnow")


@pytest.mark.parametrize("stream", [False, True])
def test_a_stream_is_in_flight_until_its_end(
    scripted: Scripted, key_file: str, stream: bool
) -> None:
    async def run() -> None:
        scripted.engine.gate.clear()
        async with client(scripted, api_key_file=key_file, max_requests_per_key=1) as http:
            request = BODY | {"stream": stream}
            first = asyncio.create_task(http.post(CHAT, json=request, headers=bearer("one")))
            while not scripted.engine.open:
                await asyncio.sleep(0)
            second = await http.post(CHAT, json=BODY, headers=bearer("one"))
            assert second.status_code == 429 and second.headers["retry-after"] == "1"
            assert second.json()["error"]["code"] == "too_many_requests"
            # In Anthropic's dialect as well.
            third = await http.post("/v1/messages", json={}, headers={"x-api-key": "one"})
            assert third.status_code == 429 and third.json()["type"] == "error"
            # Another key has limits of its own.
            assert (await http.get("/v1/models", headers=bearer("two"))).status_code == 200
            assert (await http.get("/health")).status_code == 200
            scripted.engine.gate.set()
            assert (await first).status_code == 200
            assert (await http.post(CHAT, json=BODY, headers=bearer("one"))).status_code == 200

    asyncio.run(run())


@pytest.mark.parametrize("stream", [False, True])
def test_the_tokens_of_an_answer_are_charged(
    scripted: Scripted, key_file: str, stream: bool
) -> None:
    async def run() -> None:
        config: Any = {"api_key_file": key_file, "max_tokens_per_minute_per_key": 5}
        async with client(scripted, **config) as http:
            answers = []
            for _ in range(2):
                answer = await http.post(
                    CHAT, json=BODY | {"stream": stream}, headers=bearer("one")
                )
                answers.append(answer)
            assert [answer.status_code for answer in answers] == [200, 429]
            assert answers[1].json()["error"]["code"] == "token_rate_exceeded"
            assert int(answers[1].headers["retry-after"]) > 60, "more than a minute's worth"
            assert (await http.post(CHAT, json=BODY, headers=bearer("two"))).status_code == 200

    asyncio.run(run())


def test_unknown_keys_are_told_nothing(scripted: Scripted, key_file: str) -> None:
    async def run() -> None:
        async with client(scripted, api_key_file=key_file) as http:
            bodies = set()
            for headers in (
                {},
                bearer("wrong"),
                bearer(""),
                {"authorization": "Basic one"},
                {"authorization": "one"},
                {"x-api-key": "wrong"},
                {"authorization": "Basic x", "x-api-key": "one"},
            ):
                answer = await http.post(CHAT, json=BODY, headers=headers)
                assert answer.status_code == 401, headers
                bodies.add(answer.content)
            assert len(bodies) == 1
            for headers in (bearer("one"), {"authorization": "bearer  one"}, {"x-api-key": "one"}):
                assert (await http.get("/v1/models", headers=headers)).status_code == 200

    asyncio.run(run())


@pytest.mark.parametrize("name", ["max_requests_per_key", "max_tokens_per_minute_per_key"])
def test_limits_of_keys_need_keys(name: str) -> None:
    fields: Any = {name: 1}
    with pytest.raises(ConfigError, match="api-key-file"):
        ServerConfig(**fields)


UNTIL_MARKER = {"thinking_retention": "until_marker"}


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"cache_salt": "x" * 513}, "cache_salt"),
        ({"logit_bias": {str(token_id): 1 for token_id in range(1025)}}, "logit_bias"),
        ({"stop_token_ids": [0] * 129}, "stop_token_ids"),
        ({"messages": [{"role": "system", "content": ""}] * 5000}, "messages"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"n": 129}, "n"),
        ({"user_id": "x" * 513}, "user_id"),
        ({"stop": ["x" * 1001]}, "stop"),
        ({"messages": [{"role": "user", "content": "x" * 10**7}]}, "messages"),
        ({"tools": [tool(f"f{number}") for number in range(129)]}, "tools"),
        ({"tools": [tool("f", description="x" * 10**7)]}, "tools"),
        ({"tools": [tool("x" * 65)]}, "tools[0].function.name"),
        ({"bad_words": ["x"] * 101}, "bad_words"),
        ({"bad_words": ["x" * 1001]}, "bad_words[0]"),
        ({"allowed_token_ids": [0] * 1025}, "allowed_token_ids"),
        ({"retention_marker": ["x"] * 17, **UNTIL_MARKER}, "retention_marker"),
        ({"retention_marker": "x" * 1001, **UNTIL_MARKER}, "retention_marker"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"max_tokens": 10**12}, "max_tokens"),
        ({"guided_choice": ["x"] * 1001}, "guided_choice"),
        ({"guided_regex": "x" * 4097}, "guided_regex"),
        ({"guided_grammar": "x" * 16385}, "guided_grammar"),
        ({"guided_json": {"const": "x" * 2**16}}, "guided_json"),
    ],
)
def test_what_a_client_can_enlarge_has_a_limit(
    scripted: Scripted, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(ApiError) as caught:
        asyncio.run(scripted.complete(**fields))
    assert (caught.value.status, caught.value.param) == (400, param)
    assert not scripted.engine.submits


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ["x"] * 129}, "prompt"),
        ({"prompt": "x" * 10**7}, "prompt"),
        ({"prompt": [1] * 5000}, "prompt"),
        ({"prompt": "x", "best_of": 5}, "best_of"),
        ({"prompt": "x", "n": 129}, "n"),
        ({"prompt": "x", "logprobs": 21}, "logprobs"),
        ({"prompt": ["x" * 4000] * 100, "n": 128, "echo": True}, "echo"),
        ({"prompt": ["x" * 4000] * 100, "n": 128, "return_token_ids": True}, "return_token_ids"),
    ],
)
def test_a_text_completion_has_limits_of_its_own(
    scripted: Scripted, fields: dict[str, Any], param: str
) -> None:
    request = msgspec.json.encode({"model": MODEL, **fields})
    with pytest.raises(ApiError) as caught:
        asyncio.run(scripted.service.start_completion(request))
    assert (caught.value.status, caught.value.param) == (400, param)
    assert not scripted.engine.submits

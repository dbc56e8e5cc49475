"""api.server: the routes, through the openai SDK and raw HTTP, over a scripted model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from api.backend import Backend
from api.config import ServerConfig
from api.server import create_app
from engine.client import ConfigError
from engine.messages import Refused
from tests.api.scripted_engine import MODEL, Scripted

T = TypeVar("T")

USER: Any = [{"role": "user", "content": "What day is it?"}]
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("get_date", "add")
]
CALLS = (
    "Let me see.\n\n<｜DSML｜function_calls>\n"
    '<｜DSML｜invoke name="get_date">\n\n</｜DSML｜invoke>\n'
    '<｜DSML｜invoke name="add">\n'
    '<｜DSML｜parameter name="a" string="false">1</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜function_calls>"
)


def http(backend: Backend, use: Callable[[httpx.AsyncClient], Awaitable[T]], **config: Any) -> T:
    """Runs `use` with an HTTP client of an application over the backend."""

    async def run() -> T:
        app = create_app(backend, ServerConfig(**config))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://winnow") as client:
            return await use(client)

    return asyncio.run(run())


def sdk(scripted: Scripted, use: Callable[[AsyncOpenAI], Awaitable[T]]) -> T:
    """The same with the openai SDK."""

    async def run(client: httpx.AsyncClient) -> T:
        return await use(
            AsyncOpenAI(
                base_url="http://winnow/v1", api_key="none", http_client=client, max_retries=0
            )
        )

    return http(scripted.backend, run)


def get(backend: Backend, path: str, **config: Any) -> httpx.Response:
    return http(backend, lambda client: client.get(path), **config)


def test_an_answer(scripted: Scripted) -> None:
    answer = sdk(scripted, lambda c: c.chat.completions.create(model=MODEL, messages=USER))
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content == "Hello!"
    assert answer.choices[0].message.tool_calls is None
    assert answer.usage is not None and answer.usage.completion_tokens == 7


def test_the_accumulator_of_the_sdk_sees_what_was_said(scripted: Scripted) -> None:
    scripted.replies = ["a date</think>" + CALLS]
    scripted.engine.step_tokens = 3

    async def use(client: AsyncOpenAI) -> Any:
        async with client.chat.completions.stream(
            model=MODEL,
            messages=USER,
            tools=TOOLS,
            reasoning_effort="high",
            stream_options={"include_usage": True},
        ) as stream:
            return await stream.get_final_completion()

    final = sdk(scripted, use)
    (choice,) = final.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.role == "assistant"
    assert choice.message.content == "Let me see."
    assert choice.message.reasoning_content == "a date"
    first, second = choice.message.tool_calls
    assert (first.function.name, first.function.arguments) == ("get_date", "{}")
    assert (second.function.name, second.function.arguments) == ("add", '{"a": 1}')
    assert first.id.startswith("call_") and first.id != second.id
    assert final.usage.completion_tokens_details.reasoning_tokens == len("a date")


def test_the_message_can_be_sent_back_as_it_came(scripted: Scripted) -> None:
    scripted.replies = ["hm</think>" + CALLS]

    async def use(client: AsyncOpenAI) -> Any:
        first = await client.chat.completions.create(
            model=MODEL, messages=USER, tools=TOOLS, reasoning_effort="low"
        )
        message = first.choices[0].message
        assert message.tool_calls is not None
        results = [
            {"role": "tool", "tool_call_id": call.id, "content": f"result of {call.id}"}
            for call in reversed(message.tool_calls)
        ]
        scripted.replies = ["so</think>Monday."]
        second = await client.chat.completions.create(
            model=MODEL,
            messages=[*USER, message.model_dump(), *results],
            tools=TOOLS,
            reasoning_effort="low",
        )
        return message.tool_calls, second

    calls, second = sdk(scripted, use)
    assert second.choices[0].message.content == "Monday."
    one, two = scripted.engine.submits
    prompt = scripted.encoder.tokenizer.decode(two.token_ids, skip_special_tokens=False)
    # Append-only: the second prompt is the first one, what was generated, and the results.
    assert two.token_ids[: len(one.token_ids)] == one.token_ids
    generated = scripted.tokens("hm</think>" + CALLS)
    end = len(one.token_ids) + len(generated)
    assert two.token_ids[len(one.token_ids) : end] == generated
    places = [prompt.index(f"result of {call.id}") for call in calls]
    assert places == sorted(places)


def test_choices_stream_in_order(scripted: Scripted) -> None:
    scripted.replies = ["a", "bcd"]

    async def use(client: AsyncOpenAI) -> Any:
        async with client.chat.completions.stream(model=MODEL, messages=USER, n=2) as stream:
            return await stream.get_final_completion()

    assert [choice.message.content for choice in sdk(scripted, use).choices] == ["a", "bcd"]


def test_streamed_logprobs_reach_the_sdk(scripted: Scripted) -> None:
    async def use(client: AsyncOpenAI) -> Any:
        async with client.chat.completions.stream(
            model=MODEL, messages=USER, logprobs=True, top_logprobs=1
        ) as stream:
            return await stream.get_final_completion()

    logprobs = sdk(scripted, use).choices[0].logprobs
    assert "".join(entry.token for entry in logprobs.content) == "Hello!"


@pytest.mark.parametrize(
    ("fields", "kind", "code"),
    [
        ({"model": "gpt-5"}, openai.NotFoundError, "model_not_found"),
        ({"n": 1000}, openai.BadRequestError, "invalid_value"),
        ({"messages": []}, openai.BadRequestError, "empty_array"),
        ({"tool_choice": "required"}, openai.BadRequestError, "invalid_value"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_are_the_sdks_exceptions(
    scripted: Scripted,
    fields: dict[str, Any],
    kind: type[openai.APIStatusError],
    code: str,
    stream: bool,
) -> None:
    request: dict[str, Any] = {"model": MODEL, "messages": USER, "stream": stream} | fields

    with pytest.raises(kind) as caught:
        sdk(scripted, lambda c: c.chat.completions.create(**request))
    assert caught.value.code == code


def test_a_full_queue_says_when_to_come_back(scripted: Scripted) -> None:
    scripted.engine.refusal = Refused("x", 429, "queue_full", "full", None, 7.0)
    with pytest.raises(openai.RateLimitError) as caught:
        sdk(scripted, lambda c: c.chat.completions.create(model=MODEL, messages=USER))
    assert caught.value.response.headers["retry-after"] == "7"


def test_an_engine_that_dies_mid_stream_raises_in_the_sdk(scripted: Scripted) -> None:
    async def use(client: AsyncOpenAI) -> None:
        stream = await client.chat.completions.create(model=MODEL, messages=USER, stream=True)
        scripted.engine.death = "killed"
        scripted.engine.gate.set()
        async for _ in stream:
            pass

    async def delayed(client: AsyncOpenAI) -> None:
        # In-process transport buffers: the engine must die while the stream is being made.
        scripted.engine.gate.clear()
        killer = asyncio.create_task(kill())
        stream = await client.chat.completions.create(model=MODEL, messages=USER, stream=True)
        async for _ in stream:
            pass
        await killer

    async def kill() -> None:
        while not scripted.engine.open:
            await asyncio.sleep(0)
        scripted.engine.death = "killed"
        scripted.engine.gate.set()

    with pytest.raises(openai.APIError, match="killed"):
        sdk(scripted, delayed)
    with pytest.raises(openai.InternalServerError):
        sdk(scripted, use)


def test_models(scripted: Scripted) -> None:
    data = get(scripted.backend, "/v1/models").json()["data"]
    assert [model["id"] for model in data] == [MODEL]
    one = get(scripted.backend, f"/v1/models/{MODEL}").json()
    assert (one["object"], one["max_model_len"]) == ("model", 4096)
    missing = get(scripted.backend, "/v1/models/org/other")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


def test_probes_before_ready_and_after_death(scripted: Scripted) -> None:
    loading = Backend((MODEL,))
    assert get(loading, "/health").status_code == 200
    ready = get(loading, "/ready")
    assert (ready.status_code, ready.json()["error"]["code"]) == (503, "loading")
    assert int(ready.headers["retry-after"]) >= 1
    assert get(loading, "/v1/models").status_code == 503
    assert get(scripted.backend, "/ready").status_code == 200
    scripted.backend.draining = True
    assert get(scripted.backend, "/ready").json()["error"]["code"] == "stopping"
    assert get(scripted.backend, "/health").status_code == 200
    scripted.engine.death = "killed"
    assert get(scripted.backend, "/health").status_code == 503


def test_version_and_memory(scripted: Scripted) -> None:
    assert get(scripted.backend, "/version").json().keys() == {"version"}
    info = get(scripted.backend, "/server_info").json()
    assert info["memory_bytes"] == {"weights": 1}
    assert (info["model"], info["max_model_len"]) == (MODEL, 4096)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/chat/completions", 405), ("POST", "/v1/nothing", 404), ("GET", "/", 404)],
)
def test_unknown_routes_answer_in_the_same_shape(
    scripted: Scripted, method: str, path: str, status: int
) -> None:
    response = http(scripted.backend, lambda client: client.request(method, path))
    assert response.status_code == status
    assert response.json()["error"].keys() == {"message", "type", "param", "code"}


def test_a_bug_answers_in_the_same_shape(scripted: Scripted) -> None:
    def broken(*_: Any) -> list[int]:
        raise ZeroDivisionError

    scripted.engine.script = broken
    request = {"model": MODEL, "messages": USER}
    response = http(scripted.backend, lambda c: c.post("/v1/chat/completions", json=request))
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "ZeroDivision" not in response.text


def test_keys(scripted: Scripted, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("first-key\n\n second-key \n")

    def status(path: str, authorization: str | None) -> int:
        headers = {} if authorization is None else {"authorization": authorization}
        response = http(
            scripted.backend, lambda c: c.get(path, headers=headers), api_key_file=str(file)
        )
        if response.status_code == 401:
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
        return response.status_code

    assert status("/v1/models", None) == 401
    assert status("/v1/models", "Bearer wrong") == 401
    assert status("/v1/models", "first-key") == 401
    assert status("/v1/models", "Bearer first-key") == 200
    assert status("/server_info", "bearer second-key") == 200
    assert status("/server_info", None) == 401
    assert status("/health", None) == status("/ready", None) == status("/version", None) == 200


def test_unusable_key_files(scripted: Scripted, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("\n")
    for file, message in ((empty, "holds no key"), (tmp_path / "missing", "cannot be read")):
        with pytest.raises(ConfigError, match=message):
            create_app(scripted.backend, ServerConfig(api_key_file=str(file)))


def test_long_bodies_are_refused_whether_their_length_is_stated_or_not(scripted: Scripted) -> None:
    async def chunks() -> Any:
        for _ in range(20):
            yield b" " * 100

    def post(content: Any) -> httpx.Response:
        return http(
            scripted.backend,
            lambda c: c.post("/v1/chat/completions", content=content),
            max_body_bytes=1000,
        )

    for content in (b" " * 1001, chunks()):
        response = post(content)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"
    assert post(b" " * 1000).status_code == 400

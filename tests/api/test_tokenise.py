"""api.tokenise: text there and back, conversations as they are answered, refusals by name."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from api.chat.encoding import Encoder
from api.chat.markers import ASSISTANT, DSML, EOS, THINK_START
from api.errors import ApiError
from api.tokenise import Tokens, detokenise, tokenise
from engine.hub import EMBEDDED_MODEL
from tests.api.scripted_engine import MODEL, Scripted, body
from tests.api.test_server import http

USER: Any = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def embedded() -> Scripted:
    """A service with the embedded checkpoint's tokenizer."""
    return Scripted(Encoder.from_folder(EMBEDDED_MODEL))


def tokens(scripted: Scripted, **fields: Any) -> Tokens:
    return tokenise(scripted.service, msgspec.json.encode(fields))


def text(scripted: Scripted, token_ids: list[int]) -> str:
    body = msgspec.json.encode({"tokens": token_ids})
    return detokenise(scripted.service, body).prompt


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text() | st.lists(st.sampled_from([EOS, DSML, THINK_START, "é", " a", "<"])).map("".join))
def test_text_comes_back(embedded: Scripted, said: str) -> None:
    found = tokens(embedded, prompt=said, add_special_tokens=False)
    assert text(embedded, found.tokens) == said
    assert found.count == len(found.tokens)
    begun = tokens(embedded, prompt=said)
    assert begun.tokens == [embedded.encoder.bos_token_id, *found.tokens]
    # No control token comes out of text, whatever it spells.
    controls = {embedded.encoder.eos_token_id, embedded.encoder.dsml_token_id}
    assert not controls.intersection(found.tokens)


def test_ids_are_the_tokenizers(embedded: Scripted) -> None:
    said = "The Eiffel Tower: 330 m, «très haut».\n\n"
    own = Tokenizer.from_file(str(EMBEDDED_MODEL / "tokenizer.json"))
    assert tokens(embedded, prompt=said, add_special_tokens=False).tokens == (
        own.encode(said, add_special_tokens=False).ids
    )
    ids = list(range(own.get_vocab_size()))[:400]
    assert text(embedded, ids) == own.decode(ids, skip_special_tokens=False)


def test_a_conversation_has_the_tokens_of_its_answer(scripted: Scripted) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    asked: Any = {"messages": USER, "tools": [tool], "thinking": {"type": "enabled"}}
    _, prompt = scripted.service.prepare(body(**asked))
    found = tokens(scripted, **asked)
    assert found.tokens == prompt.token_ids
    assert found.max_model_len == scripted.engine.ready.max_model_len
    assert found.token_strs is None


def test_a_conversation_may_end_in_a_prefix(scripted: Scripted) -> None:
    said = [*USER, {"role": "assistant", "content": "Well"}]
    found = tokens(scripted, messages=said, continue_final_message=True)
    assert text(scripted, found.tokens).endswith("Well")
    marked = [*USER, {"role": "assistant", "content": "Well", "prefix": True}]
    assert tokens(scripted, messages=marked).tokens == found.tokens


def test_every_token_has_its_text(scripted: Scripted) -> None:
    found = tokens(scripted, messages=USER, return_token_strs=True)
    assert found.token_strs is not None and len(found.token_strs) == found.count
    assert ASSISTANT in found.token_strs and "H" in found.token_strs


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": USER}, "prompt"),
        ({"prompt": 1}, "prompt"),
        ({"prompt": "a", "model": "gpt"}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [*USER, {"role": "assistant", "content": "a"}]}, "messages[1].role"),
        ({"messages": USER, "tools": [{"type": "function"}]}, "tools[0].function"),
        ({"messages": USER, "add_generation_prompt": False}, "add_generation_prompt"),
    ],
)
def test_refusals_name_the_field(scripted: Scripted, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        tokens(scripted, **fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "tokens"),
        ({"tokens": "a"}, "tokens"),
        ({"tokens": [1, -1]}, "tokens[1]"),
        ({"tokens": [10**9]}, "tokens[0]"),
        ({"tokens": [1], "model": "gpt"}, "model"),
    ],
)
def test_bad_tokens_are_named(scripted: Scripted, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        detokenise(scripted.service, msgspec.json.encode(fields))
    assert caught.value.param == param


def test_bytes_that_are_no_text_are_shown_as_such(scripted: Scripted, encoder: Encoder) -> None:
    first, _ = encoder.encode_text("é")
    assert text(scripted, [first]) == "\ufffd"
    assert text(scripted, []) == ""


@pytest.mark.parametrize("base", ["", "/v1"])
def test_the_routes(scripted: Scripted, base: str) -> None:
    async def run(client: Any) -> Any:
        asked = {"model": MODEL, "prompt": "Hi!", "add_special_tokens": False}
        there = (await client.post(f"{base}/tokenize", json=asked)).json()
        back = await client.post(f"{base}/detokenize", json={"tokens": there["tokens"]})
        return there, back.json()

    there, back = http(scripted.backend, run)
    assert (there["count"], there["max_model_len"]) == (3, 4096)
    assert back == {"prompt": "Hi!"}
    refused = http(scripted.backend, lambda c: c.post(f"{base}/tokenize", content=b"[]"))
    assert refused.status_code == 400 and "error" in refused.json()


def test_a_long_text_does_not_hold_up_the_loop(scripted: Scripted) -> None:
    """It is tokenised on a thread: the probe is answered while it is."""

    async def run(client: Any) -> list[str]:
        order: list[str] = []

        async def ask(name: str, *request: Any, **more: Any) -> None:
            assert (await client.request(*request, **more)).status_code == 200
            order.append(name)

        long = {"prompt": "word " * 20_000}
        await asyncio.gather(
            ask("long", "POST", "/tokenize", json=long), ask("probe", "GET", "/version")
        )
        return order

    assert http(scripted.backend, run) == ["probe", "long"]


def test_what_no_window_holds_is_refused_unread(scripted: Scripted) -> None:
    window = scripted.service.facts.max_model_len
    for ask, fields in (
        (tokenise, {"prompt": "a" * 10**6}),
        (tokenise, {"messages": [{"role": "user", "content": "a" * 10**6}]}),
        (detokenise, {"tokens": [5] * (window + 1)}),
    ):
        with pytest.raises(ApiError) as caught:
            ask(scripted.service, msgspec.json.encode(fields))  # type: ignore[operator]
        assert caught.value.code == "context_length_exceeded"
    assert text(scripted, [65] * window)
    # A prompt longer than the window can still be counted.
    assert tokens(scripted, prompt="a" * (window + 1)).count == window + 2


def test_text_is_measured_in_bytes(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Megabytes of other scripts are refused as soon as megabytes of Latin, and not tokenised."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the text was tokenised")

    longest = max(len(token.encode()) for token in scripted.encoder.tokenizer.get_vocab())
    monkeypatch.setattr(Encoder, "encode", fail)
    monkeypatch.setattr(Encoder, "encode_raw", fail)
    text = "\u5b57" * (scripted.service.facts.max_model_len * longest // 3 + 1)
    for fields in ({"prompt": text}, {"messages": [{"role": "user", "content": text}]}):
        with pytest.raises(ApiError) as caught:
            tokenise(scripted.service, msgspec.json.encode(fields))
        assert caught.value.code == "context_length_exceeded"


def test_a_conversation_is_its_senders(scripted: Scripted) -> None:
    """Reasoning that was lost is restored for the key that it was given to, and counted."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    fields: Any = {"thinking": {"type": "enabled"}, "tools": tools}
    scripted.replies = [
        'hm</think>\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="f">\n'
        "\n</｜DSML｜invoke>\n</｜DSML｜function_calls>"
    ]

    async def call() -> Any:
        turn = await scripted.service.start(body(**fields), tenant="key")
        async with turn:
            return msgspec.to_builtins(await turn.completion())

    said = asyncio.run(call())["choices"][0]["message"]
    del said["reasoning_content"]
    (called,) = said["tool_calls"]
    messages = [*USER, said, {"role": "tool", "tool_call_id": called["id"], "content": "x"}]
    lost = msgspec.json.encode({"messages": messages, **fields})
    own, others = (tokenise(scripted.service, lost, tenant).tokens for tenant in ("key", "other"))
    assert "<think>hm</think>" in text(scripted, own)
    assert "<think></think>" in text(scripted, others)
    empty = msgspec.json.encode({"messages": messages, "missing_reasoning": "empty", **fields})
    assert tokenise(scripted.service, empty, "key").tokens == others

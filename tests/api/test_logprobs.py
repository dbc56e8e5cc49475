"""api.logprobs: token text, exact bytes, and numbers that JSON can hold."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from api.chat.detokenizer import TokenBytes
from api.chat.encoding import Encoder
from api.errors import ApiError
from api.logprobs import FLOOR, MAX_PROMPT_ENTRIES, LogprobWriter, check_prompt_entries
from api.response import PromptLogprob
from engine.messages import TokenLogprobs
from tests.api.scripted_engine import Scripted, body


def test_entries(encoder: Encoder) -> None:
    writer = LogprobWriter(TokenBytes(encoder.tokenizer))
    first, second = encoder.encode_text("é")
    padding = encoder.tokenizer.get_vocab_size() + 5
    entry = writer.entry(first, TokenLogprobs(-1.5, [(second, -0.5), (padding, -math.inf)]))
    assert (entry.token, entry.logprob, entry.bytes) == ("�", -1.5, [0xC3])
    half, unknown = entry.top_logprobs
    assert (half.bytes, half.logprob) == ([0xA9], -0.5)
    assert (unknown.token, unknown.bytes, unknown.logprob) == ("", [], FLOOR)


def test_control_tokens_are_their_text(encoder: Encoder) -> None:
    writer = LogprobWriter(TokenBytes(encoder.tokenizer))
    entry = writer.entry(encoder.think_end_token_id, TokenLogprobs(0.0, []))
    assert entry.token == "</think>"
    assert bytes(entry.bytes or ()) == b"</think>"


def test_tokens_can_be_named_by_their_ids(encoder: Encoder) -> None:
    writer = LogprobWriter(TokenBytes(encoder.tokenizer), as_ids=True)
    first, second = encoder.encode_text("é")
    entry = writer.entry(first, TokenLogprobs(-1.5, [(second, -0.5)]))
    assert (entry.token, entry.bytes) == (f"token_id:{first}", [0xC3])
    assert entry.top_logprobs[0].token == f"token_id:{second}"


def test_entries_of_a_prompt(encoder: Encoder) -> None:
    writer = LogprobWriter(TokenBytes(encoder.tokenizer))
    a, b, c = encoder.encode_text("abc")
    found = [
        TokenLogprobs(-3.0, [(c, -0.1), (a, -0.2), (b, -9.0)], 17),
        TokenLogprobs(-0.1, [(c, -0.1), (a, -math.inf)], 1),
    ]
    first, second, third = writer.prompt([a, b, c], found, 2)
    assert first is None and second is not None and third is not None
    assert list(second) == [str(b), str(c), str(a)]
    assert second[str(b)] == PromptLogprob(-3.0, 17, "b")
    assert second[str(a)] == PromptLogprob(-0.2, 2, "a")
    assert third == {str(c): PromptLogprob(-0.1, 1, "c"), str(a): PromptLogprob(FLOOR, 2, "a")}


def test_a_chat_completion_carries_those_of_its_prompt(scripted: Scripted) -> None:
    answer = asyncio.run(scripted.complete(prompt_logprobs=1, return_token_ids=True, n=2))
    entries, ids = answer["prompt_logprobs"], answer["prompt_token_ids"]
    assert len(entries) == len(ids) and entries[0] is None
    for place, (token, entry) in enumerate(zip(ids[1:], entries[1:], strict=True), 1):
        assert entry[str(token)]["logprob"] == -1.0 * place and entry["0"]["rank"] == 1
    assert "prompt_logprobs" not in asyncio.run(scripted.complete())


@pytest.mark.parametrize(
    "fields",
    [{"prompt_logprobs": 21}, {"prompt_logprobs": -1}, {"prompt_logprobs": 0, "stream": True}],
)
def test_prompt_logprobs_are_refused_by_name(scripted: Scripted, fields: Any) -> None:
    with pytest.raises(ApiError) as caught:
        asyncio.run(scripted.service.start(body(**fields)))
    assert (caught.value.status, caught.value.param) == (400, "prompt_logprobs")


@pytest.mark.parametrize("top", [0, 1, 20])
def test_a_prompt_with_too_many_is_refused_before_the_engine_hears_of_it(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, top: int
) -> None:
    """The engine, its socket and the server would hold them all until the answer begins."""
    chat, text = body(prompt_logprobs=top), body(prompt="a" * 50, prompt_logprobs=top, n=2)
    tokens = len(scripted.service.prepare(chat)[1].token_ids)
    several = 2 * len(scripted.service.prepare_completion(text)[1][0].token_ids)

    async def ask(answer: Any) -> None:
        async with await answer:
            pass

    for limit in (0, 1):
        monkeypatch.setattr("api.logprobs.MAX_PROMPT_ENTRIES", tokens * (top + 1) - limit)
        if not limit:
            asyncio.run(ask(scripted.service.start(chat)))
            continue
        with pytest.raises(ApiError, match="log-probabilities of prompt tokens") as caught:
            asyncio.run(ask(scripted.service.start(chat)))
        assert (caught.value.status, caught.value.param) == (400, "prompt_logprobs")
    assert len(scripted.engine.submits) == 1
    monkeypatch.setattr("api.logprobs.MAX_PROMPT_ENTRIES", several * (top + 1) - 1)
    with pytest.raises(ApiError, match="log-probabilities of prompt tokens") as caught:
        asyncio.run(ask(scripted.service.start_completion(text)))
    assert (caught.value.status, caught.value.param) == (400, "prompt_logprobs")
    assert len(scripted.engine.submits) == 1


def test_the_entries_of_an_answer_are_bounded() -> None:
    check_prompt_entries(MAX_PROMPT_ENTRIES // 4, 3, "prompt_logprobs")
    with pytest.raises(ApiError) as caught:
        check_prompt_entries(MAX_PROMPT_ENTRIES // 4 + 1, 3, "prompt_logprobs")
    assert caught.value.param == "prompt_logprobs"

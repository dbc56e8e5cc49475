"""Scored prompts from a real engine: what the model said of its tokens, it says of them again."""

from __future__ import annotations

import httpx
import pytest
from openai import OpenAI

from tests.api.scripted_engine import MODEL
from tests.api.server_process import ServerProcess

TOKENS = 20


def test_an_echo_scores_a_text_as_the_model_did_when_it_wrote_it(server: ServerProcess) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    written = client.completions.create(
        model=MODEL,
        prompt="Once upon a time",
        max_tokens=TOKENS,
        temperature=0,
        logprobs=2,
        extra_body={"return_token_ids": True, "ignore_eos": True},
    ).choices[0]
    extra = written.model_extra or {}
    ids = [*extra["prompt_token_ids"], *extra["token_ids"]]
    # The prompt is in the cache now; it is computed again.
    fields = {"model": MODEL, "prompt": ids, "echo": True, "logprobs": 2, "max_tokens": 0}
    scored = client.completions.create(**fields).choices[0]  # type: ignore[call-overload]
    assert written.logprobs is not None and scored.logprobs is not None
    assert scored.logprobs.tokens is not None and scored.logprobs.tokens[-TOKENS:] == (
        written.logprobs.tokens
    )
    found = scored.logprobs.token_logprobs or []
    assert len(found) == len(ids) and found[0] is None
    assert found[-TOKENS:] == pytest.approx(written.logprobs.token_logprobs, abs=2e-3)
    assert scored.text.endswith(written.text) and scored.finish_reason == "length"
    chunks = list(client.completions.create(**fields, stream=True))  # type: ignore[call-overload]
    assert chunks[0].choices[0].logprobs.token_logprobs == pytest.approx(found)
    answer = httpx.post(
        f"{server.url}/v1/completions",
        json={"model": MODEL, "prompt": ids, "prompt_logprobs": 0, "max_tokens": 1},
        timeout=60,
    ).json()
    entries = answer["choices"][0]["prompt_logprobs"]
    assert [
        None,
        *(entry[str(i)]["logprob"] for entry, i in zip(entries[1:], ids[1:], strict=True)),
    ] == (pytest.approx(found))
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0

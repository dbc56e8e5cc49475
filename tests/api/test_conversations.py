"""What stays cached across the messages of a conversation, through the HTTP server.

A random model says what a logit bias makes it say, so that every token is known.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.chat.encoding import Encoder
from tests.api.scripted_engine import MODEL
from tests.api.server_process import ServerProcess

CHAT = "/v1/chat/completions"
PAGE_TOKENS = 64
PATIENCE_S = 120
REASONING_TOKENS = 70
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
SYSTEM = {"role": "system", "content": "Be brief. " * 15}
USER = {"role": "user", "content": "What is on the table?"}


@pytest.fixture(scope="module")
def own_encoder(random_model: Path) -> Encoder:
    return Encoder.from_folder(random_model)


class Client:
    """Sends conversations in thinking mode and reads usage."""

    def __init__(self, url: str, salt: str) -> None:
        self.url, self.salt = url, salt

    def ask(self, messages: list[Any], **fields: Any) -> dict[str, Any]:
        request = {"model": MODEL, "messages": messages, "tools": TOOLS, "temperature": 0}
        request |= {"thinking": {"type": "enabled"}, "cache_salt": self.salt}
        request |= {"ignore_eos": True, **fields}
        response = httpx.post(self.url + CHAT, json=request, timeout=PATIENCE_S)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        usage = answer["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert cached == usage["prompt_cache_hit_tokens"]
        assert usage["prompt_tokens"] - cached == usage["prompt_cache_miss_tokens"]
        return answer

    def snapshot(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(self.url + "/server_info").json()["snapshot"]
        return found


def pages_of(tokens: int) -> int:
    """Tokens rounded down to whole pages."""
    return tokens // PAGE_TOKENS * PAGE_TOKENS


def cached(answer: dict[str, Any]) -> int:
    found: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


def prompt_tokens(answer: dict[str, Any]) -> int:
    found: int = answer["usage"]["prompt_tokens"]
    return found


def reasoning(encoder: Encoder) -> dict[str, Any]:
    """Makes the model think "aaa..." until it is cut."""
    (letter,) = encoder.encode_text("a")
    return {"logit_bias": {str(letter): 100}, "max_tokens": REASONING_TOKENS}


def silence(encoder: Encoder) -> dict[str, Any]:
    """Makes the model end its reasoning at once, and its answer before the first character.

    It says </think> until the penalties outweigh it; further ones are noise. Then comes the stop.
    """
    (letter,) = encoder.encode_text("a")
    return {
        "logit_bias": {str(encoder.think_end_token_id): 100, str(letter): 90},
        "frequency_penalty": 2,
        "presence_penalty": 2,
        "stop": "a",
        "max_tokens": 40,
    }


def tool_loop(client: Client, encoder: Encoder, steps: int) -> tuple[list[Any], list[Any]]:
    """Returns the messages of a turn of `steps` tool calls, and the answers on the way."""
    messages: list[Any] = [SYSTEM, USER]
    answers = []
    for step in range(steps):
        answers.append(client.ask(messages, **reasoning(encoder)))
        said = answers[-1]["choices"][0]["message"]
        assert said["reasoning_content"] == "a" * REASONING_TOKENS
        function = {"name": "look", "arguments": json.dumps({"where": step})}
        call = {"id": f"call_{step}", "type": "function", "function": function}
        messages += [
            {"role": "assistant", "content": None, "tool_calls": [call]}
            | {"reasoning_content": said["reasoning_content"]},
            {"role": "tool", "tool_call_id": call["id"], "content": "a lamp, " * (9 + step)},
        ]
    return messages, answers


def test_cached_tokens_grow_in_a_tool_loop_and_end_at_the_flip_point_after_it(
    server: ServerProcess, own_encoder: Encoder
) -> None:
    client = Client(server.url, "loop")
    messages, answers = tool_loop(client, own_encoder, 3)
    found = [cached(answer) for answer in answers]
    # Everything sent and generated but the last token, which was never computed.
    ends = [prompt_tokens(answer) + REASONING_TOKENS - 1 for answer in answers]
    assert found == [0, *map(pages_of, ends[:-1])]
    assert sorted(set(found)) == found

    # The answer was given elsewhere: nothing of it is warm, and all reasoning is gone.
    said = {"role": "assistant", "content": "A lamp.", "reasoning_content": "hm"}
    after = client.ask([*messages, said, {"role": "user", "content": "And?"}], max_tokens=2)
    flip = prompt_tokens(answers[0]) - 1
    assert cached(after) == pages_of(flip) > 0
    results = [m["content"] for m in messages if m["role"] == "tool"]
    stays = sum(len(own_encoder.encode_text(text)) for text in results)
    assert prompt_tokens(after) > flip + stays, "calls and results stay"
    bare = [{k: v for k, v in m.items() if k != "reasoning_content"} for m in (*messages, said)]
    without = client.ask([*bare, {"role": "user", "content": "And?"}], max_tokens=2)
    assert prompt_tokens(without) == prompt_tokens(after), "reasoning does not"
    assert cached(without) == pages_of(prompt_tokens(after) - 1)


def test_after_an_answer_the_next_message_finds_the_whole_turn(
    server: ServerProcess, own_encoder: Encoder
) -> None:
    client = Client(server.url, "warm")
    messages, answers = tool_loop(client, own_encoder, 2)
    before = client.snapshot()
    last = client.ask(messages, **silence(own_encoder))
    assert last["choices"][0]["finish_reason"] == "stop"
    said = last["choices"][0]["message"]
    assert not said["content"]
    deadline = time.monotonic() + PATIENCE_S
    while (now := client.snapshot())["pre_warmed_tokens"] == before["pre_warmed_tokens"] or (
        now["pre_warms"]
    ):
        assert time.monotonic() < deadline, now
        time.sleep(0.05)
    text = "And under it?"
    after = client.ask([*messages, said, {"role": "user", "content": text}], max_tokens=2)
    # All but the new text and the two tokens that open the answer.
    known = prompt_tokens(after) - len(own_encoder.encode_text(text)) - 2
    assert cached(after) == pages_of(known) > pages_of(prompt_tokens(answers[0]) - 1)
    warmed = now["pre_warmed_tokens"] - before["pre_warmed_tokens"]
    assert cached(after) == pages_of(prompt_tokens(answers[0]) - 1) + warmed
    deadline = time.monotonic() + PATIENCE_S
    while client.snapshot()["pre_warm_hit_tokens"] != before["pre_warm_hit_tokens"] + warmed:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextlib.contextmanager
def stream(client: httpx.Client, key: str, content: str, **fields: Any) -> Iterator[httpx.Response]:
    """A streamed request, open once it was taken or refused."""
    request = {"model": MODEL, "messages": [{"role": "user", "content": content}], "stream": True}
    headers = {"authorization": f"Bearer {key}"}
    with client.stream("POST", CHAT, json=request | fields, headers=headers) as response:
        yield response


def test_a_flooding_key_is_refused_and_the_other_goes_first(
    start_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("flood-key\ncalm-key\n")
    server = start_server(
        *("--api-key-file", str(keys), "--kv-cache-bytes", "16MiB"),
        *("--max-num-seqs", "1", "--max-queued-tokens", "500"),
    )
    order: list[str] = []
    readers: list[threading.Thread] = []

    def read(name: str, response: httpx.Response) -> None:
        assert response.read().endswith(b"data: [DONE]\n\n")
        order.append(name)

    with contextlib.ExitStack() as open_streams:
        # Long enough that the order in which they end is the order in which they ran.
        some: dict[str, Any] = {"max_tokens": 100, "ignore_eos": True}
        limits = httpx.Limits(max_connections=None)
        client = open_streams.enter_context(
            httpx.Client(base_url=server.url, limits=limits, timeout=PATIENCE_S)
        )
        with stream(client, "flood-key", "endless", ignore_eos=True) as runs:
            lines = runs.iter_lines()  # kept: to drop it would be to hang up
            next(lines)
            taken = 0
            while True:
                text = f"{taken:03} " * 20
                answer = open_streams.enter_context(
                    stream(client, "flood-key", text, user_id=f"u{taken}", **some)
                )
                if answer.status_code != 200:
                    break
                readers.append(threading.Thread(target=read, args=(f"flood {taken}", answer)))
                taken += 1
                assert taken * 80 <= 600, "nobody stops it"
            assert answer.status_code == 429 and taken >= 4
            assert json.loads(answer.read())["error"]["code"] == "backlog_full"
            assert int(answer.headers["retry-after-ms"]) >= 1
            assert int(answer.headers["retry-after"]) >= 1
            calm = open_streams.enter_context(
                stream(client, "calm-key", "calm " * 16, max_tokens=2)
            )
            assert calm.status_code == 200, "it has its share of the queue"
            readers.append(threading.Thread(target=read, args=("calm", calm)))
            for reader in readers:
                reader.start()
        for reader in readers:
            reader.join(timeout=PATIENCE_S)
    assert len(order) == taken + 1
    assert order[0] == "calm", "it came last and is served first"

"""What clients do to the server, good and bad, and what became of it."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import httpx

Outcome = Literal["answered", "refused", "failed", "left", "cut", "broken"]
"""refused: an error instead of an answer; failed: a stream that ended with an error event; left:
the client went away; cut: the connection closed because its API process was killed; broken:
anything else, above all a silence and a stream without an end."""

LONGEST_WAIT_S = 4.0
PATIENCE_S = 180.0
"""A request that has not ended by then hangs."""
CUT_LIMIT_S = 5.0
"""A connection of a process that was killed must have closed by then."""
CLOSING_S = 1.0
"""A process that was killed still takes connections for a moment."""
WORDS = "anna ben clara lives in paris rome oslo likes tea and reads about rivers every day".split()
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


class Request(NamedTuple):
    """One request as it is sent."""

    path: str
    body: bytes
    streams: bool = False
    leaves_after: int | None = None
    """Lines after which the client goes away."""
    refused: bool = False
    """Nothing but a refusal will do."""


def text(chance: random.Random, words: int) -> str:
    """Returns that many words."""
    return " ".join(chance.choice(WORDS) for _ in range(words))


def chat(chance: random.Random, model: str, words: int = 12, **fields: Any) -> Request:
    """Returns a chat request."""
    message = {"role": "user", "content": text(chance, words)}
    body = {"model": model, "messages": [message], "max_tokens": chance.randint(4, 40)} | fields
    streams = bool(fields.get("stream"))
    return Request("/v1/chat/completions", json.dumps(body).encode(), streams)


def completion(chance: random.Random, model: str) -> Request:
    prompts = [text(chance, 6) for _ in range(chance.randint(1, 3))]
    body = {"model": model, "prompt": prompts, "max_tokens": 12, "n": 2}
    return Request("/v1/completions", json.dumps(body).encode())


def message(chance: random.Random, model: str, *, stream: bool) -> Request:
    messages = [{"role": "user", "content": text(chance, 8)}]
    body = {"model": model, "messages": messages, "max_tokens": 24, "stream": stream}
    return Request("/v1/messages", json.dumps(body).encode(), stream)


def response(chance: random.Random, model: str) -> Request:
    body = {"model": model, "input": text(chance, 8), "max_output_tokens": 24, "stream": True}
    return Request("/v1/responses", json.dumps(body).encode(), True)


def deserter(chance: random.Random, model: str) -> Request:
    request = chat(chance, model, stream=True, max_tokens=400, ignore_eos=True)
    return request._replace(leaves_after=chance.randint(0, 20))


def tool_loop(chance: random.Random, model: str) -> Request:
    """A turn whose tool has answered, and whose reasoning the client has lost."""
    call = {"id": f"call_{chance.randrange(10**9)}", "type": "function"}
    call |= {"function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}  # type: ignore[dict-item]
    messages = [
        {"role": "user", "content": text(chance, 6)},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": text(chance, 20)},
    ]
    body = {"model": model, "messages": messages, "tools": [TOOL], "max_tokens": 40}
    body |= {"thinking": {"type": "enabled"}}
    return Request("/v1/chat/completions", json.dumps(body).encode())


def malformed(chance: random.Random, model: str) -> Request:
    good = chat(chance, model).body
    body = chance.choice(
        (
            b"",
            b"[" * 5000,
            good[: chance.randrange(1, len(good) - 1)],
            b'{"model": "\xff"}',
            json.dumps({"model": model, "messages": "Hi"}).encode(),
            json.dumps({"model": model, "messages": [{"role": "tool", "content": 1}]}).encode(),
            good.replace(b'"max_tokens": ', b'"n": 100000, "max_tokens": -'),
            json.dumps({"model": "another", "messages": []}).encode(),
        )
    )
    path = chance.choice(("/v1/chat/completions", "/v1/completions", "/v1/messages"))
    return Request(path, body, refused=True)


KINDS: tuple[tuple[int, Callable[[random.Random, str], Request]], ...] = (
    (6, lambda c, m: chat(c, m)),
    (6, lambda c, m: chat(c, m, stream=True)),
    (2, lambda c, m: chat(c, m, words=c.randint(300, 900), stream=True)),
    (2, lambda c, m: chat(c, m, n=3, temperature=1.0)),
    (2, lambda c, m: chat(c, m, stream=True, thinking={"type": "enabled"})),
    (1, lambda c, m: chat(c, m, tools=[TOOL], tool_choice="required", max_tokens=60)),
    (1, lambda c, m: chat(c, m, response_format={"type": "json_object"}, max_tokens=60)),
    (2, completion),
    (1, lambda c, m: message(c, m, stream=False)),
    (1, lambda c, m: message(c, m, stream=True)),
    (1, response),
    (2, tool_loop),
    (4, deserter),
    (3, malformed),
)
"""(how often, what)."""


class Ended(NamedTuple):
    """What became of a request."""

    outcome: Outcome
    what: str = ""
    """Why it counts as broken."""
    retry_after_s: float = 0.0
    """What a refusal asks to wait."""
    lost: bool = False
    """The connection closed; broken, unless its process was killed."""


class Findings:
    """What became of the requests."""

    def __init__(self) -> None:
        self.outcomes: Counter[Outcome] = Counter()
        self.examples: list[str] = []
        self.spared = 0
        """Requests that ran when an API process was killed, and that were not cut."""
        self._killed_s: list[float] = []

    def api_killed(self, at_s: float) -> None:
        """An API process is about to be killed: some connections will close."""
        self._killed_s.append(at_s)

    def note(self, ended: Ended, begin_s: float = 0.0, end_s: float = 0.0) -> None:
        """Counts a request. begin_s, end_s: by the clock of `api_killed`."""
        outcome = ended.outcome
        ran = [at_s for at_s in self._killed_s if begin_s - CLOSING_S <= at_s <= end_s]
        if ended.lost and any(end_s - at_s <= CUT_LIMIT_S for at_s in ran):
            outcome = "cut"
        elif not ended.lost and any(begin_s <= at_s for at_s in ran):
            self.spared += 1
        self.outcomes[outcome] += 1
        if outcome == "broken" and len(self.examples) < 10:
            self.examples.append(ended.what)


async def ask(client: httpx.AsyncClient, request: Request) -> Ended:
    """Sends a request; returns what became of it."""
    headers = {"content-type": "application/json"}
    built = client.build_request("POST", request.path, content=request.body, headers=headers)
    try:
        async with asyncio.timeout(PATIENCE_S):
            answer = await client.send(built, stream=True)
            try:
                return await _read(answer, request)
            finally:
                await answer.aclose()
    except TimeoutError:
        return Ended("broken", f"{request.path}: no end within {PATIENCE_S:g} s")
    except httpx.HTTPError as error:
        return Ended("broken", f"{request.path}: {type(error).__name__}: {error}", lost=True)


async def _read(answer: httpx.Response, request: Request) -> Ended:
    what = f"{request.path}: {answer.status_code}"
    if answer.status_code != 200:
        body = await answer.aread()
        told = b'"error"' in body and b'"message"' in body
        busy = answer.status_code in (429, 503)
        expected = busy or (request.refused and answer.status_code < 500)
        if not told or not expected:
            return Ended("broken", f"{what} {body[:300]!r}")
        return Ended("refused", retry_after_s=float(answer.headers.get("retry-after", 0)))
    if request.refused:
        return Ended("broken", f"{what} for {request.body[:300]!r}")
    if not request.streams:
        body = await answer.aread()
        good = bool(json.loads(body).get("id"))
        return Ended("answered") if good else Ended("broken", f"{what} {body[:300]!r}")
    return await _read_stream(answer, request, what)


async def _read_stream(answer: httpx.Response, request: Request, what: str) -> Ended:
    errors, ended, lines = 0, False, 0
    last = ""
    async for line in answer.aiter_lines():
        if request.leaves_after is not None and lines >= request.leaves_after:
            return Ended("left")
        lines += 1
        if not line.startswith("data: "):
            continue
        last = line.removeprefix("data: ")
        if ended or errors:
            return Ended("broken", f"{what}: {last!r} behind the end")
        if last == "[DONE]":
            ended = True
            continue
        event = json.loads(last)
        failed = event.get("type") in ("error", "response.failed") or event.get("error")
        errors += bool(failed)
        ended = event.get("type") in ("message_stop", "response.completed", "response.incomplete")
    if errors:
        return Ended("failed")
    return Ended("answered") if ended else Ended("broken", f"{what}: no end behind {last[:200]!r}")


async def client_of(
    url: str, model: str, seed: int, findings: Findings, stop: asyncio.Event
) -> None:
    """Asks one thing after the other, as its seed has it, until it is stopped."""
    chance = random.Random(seed)
    weights = [weight for weight, _ in KINDS]
    async with httpx.AsyncClient(base_url=url, timeout=None) as client:
        while not stop.is_set():
            ((_, kind),) = chance.choices(KINDS, weights)
            begin_s = time.monotonic()
            ended = await ask(client, kind(chance, model))
            findings.note(ended, begin_s, time.monotonic())
            # As clients do: not all of what they are asked, and not at the same moment.
            await asyncio.sleep(min(ended.retry_after_s, LONGEST_WAIT_S) * chance.uniform(0.5, 1))

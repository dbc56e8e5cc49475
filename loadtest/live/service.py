"""The server under load: is it there, what does it serve, how many tokens are its words.

All of it is asked before a run begins, so that what is wrong is said then.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from loadtest.live.client import Client, error_text
from loadtest.live.exchange import Address, AddressError, Connection, ExchangeError
from loadtest.live.samples import Sample
from loadtest.live.scrape import read_counts
from loadtest.live.text import TOKENS_PER_WORD, WORDS, words

PROBE_WORDS = (40, 360)
"""Of two requests; what one word takes is the difference."""
UNKNOWN_WINDOW_TOKENS = 1 << 17


class ServiceError(Exception):
    """A server that cannot be put under load; the message says why, and what to do."""


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a server."""

    address: Address
    """With the path before /chat/completions."""
    headers: dict[str, str]
    model: str
    window_tokens: int
    metrics: Address | None
    """Where its cost series are; None: it has none."""
    extensions: bool
    """Whether it takes the fields that fix the length of an answer."""
    counts_tokens: bool
    tokens_per_word: float

    def client(self, silence_limit_s: float) -> Client:
        """Returns a new user's client."""
        return Client(
            self.address,
            fields={"model": self.model},
            headers=self.headers,
            silence_limit_s=silence_limit_s,
        )

    def scraper(self) -> Connection | None:
        """Returns a new connection to the cost series."""
        return None if self.metrics is None else Connection(self.metrics, silence_limit_s=10)


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


def find_service(
    url: str,
    *,
    key: str | None = None,
    model: str | None = None,
    metrics_url: str | None = None,
    extensions: bool | None = None,
    silence_limit_s: float = 120.0,
) -> Service:
    """Asks a server who it is and returns what it said.

    url: of the server, with or without `/v1`. model: None takes the only one it serves.
    extensions: None means: if it has Winnow's cost series, it is Winnow. Raises ServiceError.
    """
    address = _address(url)
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    served = _models(address, headers)
    chosen = _chosen(served, model, address)
    metrics = _metrics(metrics_url or str(address).removesuffix("/v1") + "/metrics", headers)
    if metrics_url is not None and metrics is None:
        raise ServiceError(
            f"{metrics_url} has no cost series of Winnow's (winnow_gpu_seconds_total)"
        )
    service = Service(
        address=address,
        headers=headers,
        model=chosen.id,
        window_tokens=chosen.max_model_len or UNKNOWN_WINDOW_TOKENS,
        metrics=metrics,
        extensions=metrics is not None if extensions is None else extensions,
        counts_tokens=False,
        tokens_per_word=TOKENS_PER_WORD,
    )
    counted = [_prompt_tokens(service, count, silence_limit_s) for count in PROBE_WORDS]
    few, many = counted
    if not few or not many:
        return service
    per_word = (many - few) / (PROBE_WORDS[1] - PROBE_WORDS[0])
    if per_word <= 0:
        raise ServiceError(
            f"{address} counts {many} prompt tokens for {PROBE_WORDS[1]} words and {few} for "
            f"{PROBE_WORDS[0]}: texts of a given length cannot be made for it"
        )
    return msgspec.structs.replace(service, counts_tokens=True, tokens_per_word=per_word)


def _address(url: str) -> Address:
    try:
        address = Address.parse(url)
    except AddressError as error:
        raise ServiceError(str(error)) from None
    if not address.path.endswith("/v1"):
        address = address._replace(path=address.path + "/v1")
    return address


def _models(address: Address, headers: dict[str, str]) -> list[_Model]:
    connection = Connection(address, silence_limit_s=30)
    try:
        response = connection.request("GET", "/models", headers)
        body = response.read()
    except ExchangeError as error:
        raise ServiceError(f"{error} (is the server running?)") from None
    finally:
        connection.close()
    where = f"GET {address}/models"
    if response.status in (401, 403):
        raise ServiceError(f"{where} answered {response.status}: give a key with --api-key-file")
    if response.status != 200:
        raise ServiceError(f"{where} answered {response.status}: {error_text(body)}")
    try:
        served = msgspec.json.decode(body, type=_Models).data
    except msgspec.MsgspecError as error:
        raise ServiceError(f"{where} is no list of models in OpenAI's form: {error}") from None
    if not served:
        raise ServiceError(f"{where} lists no model")
    return served


def _chosen(served: list[_Model], model: str | None, address: Address) -> _Model:
    names = ", ".join(one.id for one in served)
    if model is None:
        if len(served) > 1:
            raise ServiceError(f"{address} serves {names}; choose one with --model")
        return served[0]
    for one in served:
        if one.id == model:
            return one
    raise ServiceError(f"model is {model!r}; {address} serves {names}")


def _metrics(url: str, headers: dict[str, str]) -> Address | None:
    try:
        address = Address.parse(url)
    except AddressError as error:
        raise ServiceError(f"metrics: {error}") from None
    connection = Connection(address, silence_limit_s=30)
    try:
        response = connection.request("GET", "", headers)
        body = response.read()
    except ExchangeError as error:
        raise ServiceError(f"metrics: {error}") from None
    finally:
        connection.close()
    if response.status != 200 or read_counts(body, 0.0) is None:
        return None
    return address


def _prompt_tokens(service: Service, count: int, silence_limit_s: float) -> int:
    """Prompt tokens of a message of `count` words; 0 when the server does not count them.

    It is also the first proof that the server streams chat answers at all.
    """
    body: dict[str, Any] = {
        # Another text every time, or a second run would find it cached and learn nothing of speed.
        "messages": [{"role": "user", "content": words(list(WORDS), count, time.time_ns())}],
        "max_tokens": 2,
    }
    client = service.client(silence_limit_s)
    sample = Sample("probe", 0.0, 0.0)
    answer = client.ask(body, sample, time.perf_counter())
    client.connection.close()
    if sample.outcome != "answered":
        raise ServiceError(
            f"POST {service.address}/chat/completions, streamed, was not answered: "
            f"{sample.outcome}, {sample.error}"
            + (f", HTTP {sample.status}" if sample.status else "")
        )
    return 0 if answer.usage is None else answer.usage.prompt_tokens

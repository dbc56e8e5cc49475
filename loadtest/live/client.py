"""A chat client that takes down when everything came."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec

from loadtest.live.answer import Answer, AnswerError, said_in
from loadtest.live.exchange import Address, Connection, ExchangeError, Response
from loadtest.live.samples import Sample
from loadtest.live.sse import EventError, EventReader

ERROR_BYTES = 1 << 16
LONGEST_CODE = 60
"""Characters of a server's error code that are kept: codes are counted, not read."""

_encode = msgspec.json.Encoder().encode


class Client:
    """One user of a server: a connection of its own, and what every request has."""

    def __init__(
        self,
        address: Address,
        *,
        fields: Mapping[str, Any],
        headers: Mapping[str, str] | None = None,
        silence_limit_s: float = 120.0,
    ) -> None:
        """fields: of every body, such as `model`."""
        self.connection = Connection(address, silence_limit_s=silence_limit_s)
        self._fields = dict(fields)
        self._headers = {"content-type": "application/json", **(headers or {})}

    def ask(self, body: Mapping[str, Any], sample: Sample, start_s: float) -> Answer:
        """Streams an answer; writes what was seen into `sample` as it comes.

        start_s: zero of the sample's times, by perf_counter. The sample's outcome says what became
        of the request; the answer holds what came of it. Raises nothing of the network's.
        """
        answer = Answer()
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        data = _encode({**self._fields, **body, **stream})
        sample.sent_s = time.perf_counter() - start_s
        try:
            response = self.connection.request("POST", "/chat/completions", self._headers, data)
            sample.status = response.status
            if response.status == 200:
                self._read(response, answer, sample, start_s)
            else:
                self._refused(response, sample)
        except ExchangeError as error:
            _fail(sample, error.why)
        except (AnswerError, EventError):
            _fail(sample, "broken_stream")
            self.connection.close()
        except BaseException:
            # The run is over, in the middle of an answer: the sample stays unfinished.
            self.connection.close()
            raise
        sample.end_s = time.perf_counter() - start_s
        return answer

    def _read(self, response: Response, answer: Answer, sample: Sample, start_s: float) -> None:
        reader = EventReader()
        for piece in response:
            for event in reader.feed(piece.data):
                if answer.take(event):
                    at_s = piece.at_s - start_s
                    sample.chunks_s.append(at_s)
                    sample.last_s = at_s
                    if sample.first_s < 0:
                        sample.first_s = at_s
        if answer.done or answer.finish_reason:
            sample.outcome = "answered"
        else:
            _fail(sample, "no_end")
        sample.called = bool(answer.tool_calls)
        usage = answer.usage
        if usage is None:
            sample.output_tokens = len(sample.chunks_s)
            return
        sample.counted = True
        sample.prompt_tokens, sample.cached_tokens = usage.prompt_tokens, usage.cached_tokens
        sample.output_tokens = usage.completion_tokens
        sample.reasoning_tokens = usage.reasoning_tokens

    def _refused(self, response: Response, sample: Sample) -> None:
        body = response.read()[:ERROR_BYTES]
        sample.outcome = "refused"
        sample.error = (_code(body) or f"http_{response.status}")[:LONGEST_CODE]
        sample.retry_after_s = _seconds(response.headers)


def _fail(sample: Sample, code: str) -> None:
    sample.outcome, sample.error = "failed", code


def error_text(body: bytes) -> str:
    """Returns what a body with an error says, for people."""
    try:
        found = msgspec.json.decode(body)
    except msgspec.MsgspecError:
        return body[:200].decode(errors="replace").strip()
    return said_in(found.get("error", found) if isinstance(found, dict) else found)


def _code(body: bytes) -> str:
    """The code, or else the type, of an error in OpenAI's form; "" where there is none."""
    try:
        error = msgspec.json.decode(body)["error"]
        return str(error.get("code") or error.get("type") or "")
    except (msgspec.MsgspecError, LookupError, TypeError, AttributeError):
        return ""


def _seconds(headers: Mapping[str, str]) -> float:
    """What `retry-after-ms` or `retry-after` says; 0 for a date, nonsense or nothing."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    return 0.0

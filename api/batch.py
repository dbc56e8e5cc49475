"""OpenAI's batch format: one request per line in, one answer per line out.

In:  {"custom_id", "method": "POST", "url": "/v1/chat/completions", "body"}
Out: {"id", "custom_id", "response": {"status_code", "request_id", "body"} | null, "error" | null}

Answers are written as they come; custom_id links them to their requests. A line that cannot be
answered becomes a line that says why, and the others go on.

Source: OpenAI API reference, "Batch: the request input object / the request output object".
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Literal

import msgspec

from api.chat_turn import ChatTurn
from api.errors import ApiError, ErrorBody, from_validation
from api.response import ChatCompletion
from api.service import ChatService

URL = "/v1/chat/completions"
QUEUE_FULL_RETRY_S = 1.0


class BatchRequest(msgspec.Struct, frozen=True):
    custom_id: str
    body: msgspec.Raw
    method: Literal["POST"] = "POST"
    url: str = URL


class BatchResponse(msgspec.Struct, frozen=True):
    status_code: int
    request_id: str
    body: ChatCompletion | ErrorBody


class BatchError(msgspec.Struct, frozen=True):
    code: str
    message: str


class BatchResult(msgspec.Struct, frozen=True):
    id: str
    custom_id: str | None
    response: BatchResponse | None
    error: BatchError | None


class BatchCounts(msgspec.Struct):
    """How a run went: lines answered with 200, and lines with anything else."""

    completed: int = 0
    failed: int = 0


async def run_batch(
    service: ChatService,
    lines: Iterable[bytes],
    output: BinaryIO,
    *,
    concurrency: int,
    progress: Callable[[], object] = lambda: None,
) -> BatchCounts:
    """Answers every line that is not blank, `concurrency` at a time; returns how it went.

    Lines are read as they are needed, so a file may be larger than memory. `progress` is called
    once per answer. Raises ApiError(503) when the engine dies: what is missing was not answered.
    """
    counts = BatchCounts()
    deaths: list[ApiError] = []
    numbered = _not_blank(lines)

    async def work() -> None:
        for number, line in numbered:
            try:
                result = await _answer(service, number, line)
            except ApiError as death:
                deaths.append(death)
                return
            output.write(msgspec.json.encode(result) + b"\n")
            if result.response is not None and result.response.status_code == 200:
                counts.completed += 1
            else:
                counts.failed += 1
            progress()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(concurrency):
            tasks.create_task(work())
    if deaths:
        raise deaths[0]
    return counts


def _not_blank(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


async def _answer(service: ChatService, number: int, line: bytes) -> BatchResult:
    result_id = f"batch_req_{secrets.token_hex(12)}"
    try:
        request = msgspec.json.decode(line, type=BatchRequest)
    except msgspec.ValidationError as error:
        return _bad_line(result_id, number, from_validation(error).message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _bad_line(result_id, number, f"not valid JSON: {error}")
    if request.url != URL:
        message = f"line {number}: url must be {URL!r}, not {request.url!r}"
        return BatchResult(result_id, request.custom_id, None, BatchError("invalid_url", message))
    request_id = result_id
    answer: ChatCompletion | ErrorBody
    try:
        turn = await _start(service, bytes(request.body))
        request_id = turn.id
        async with turn:
            if turn.request.stream:
                raise ApiError(400, "A batch request cannot stream.", param="stream")
            answer = await turn.completion()
        status = 200
    except ApiError as error:
        if error.code == "engine_dead":
            raise
        answer, status = error.body, error.status
    response = BatchResponse(status, request_id, answer)
    return BatchResult(result_id, request.custom_id, response, None)


async def _start(service: ChatService, body: bytes) -> ChatTurn:
    """Starts the request, waiting its turn while the queue is full: the run filled it itself.

    Lines that ask for many choices fill it sooner than their number tells.
    """
    while True:
        try:
            return await service.start(body)
        except ApiError as error:
            if error.status != 429:
                raise
            await asyncio.sleep(error.retry_after or QUEUE_FULL_RETRY_S)


def _bad_line(result_id: str, number: int, message: str) -> BatchResult:
    return BatchResult(
        result_id, None, None, BatchError("invalid_line", f"line {number}: {message}")
    )

"""OpenAI's batch format: one request per line in, one answer per line out.

In:  {"custom_id", "method": "POST", "url": "/v1/chat/completions", "body"}
Out: {"id", "custom_id", "response": {"status_code", "request_id", "body"} | null, "error" | null}

Lines may ask any of the routes that generate; errors have the shape that they have there. Answers
are written as they come; custom_id links them to their requests. A line that cannot be answered
becomes a line that says why, and the others go on.

Source: OpenAI API reference, "Batch: the request input object / the request output object".
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

import msgspec

from api.anthropic.request import read_messages_request
from api.anthropic.response import error_body, message_of
from api.anthropic.schema import ErrorBody as MessagesError
from api.anthropic.schema import Message
from api.chat_turn import ChatTurn
from api.completions.request import CompletionRequest
from api.completions.response import completion
from api.completions.schema import TextCompletion
from api.errors import ApiError, ErrorBody, from_validation, invalid
from api.response import ChatCompletion
from api.responses.request import name_as_sent, read_responses_request
from api.responses.response import ResponseTurn
from api.responses.schema import Response
from api.service import ChatService
from api.turn import Turn

QUEUE_FULL_RETRY_S = 1.0

Answer = ChatCompletion | TextCompletion | Response | Message
AnyTurn = ChatTurn | Turn[CompletionRequest]


class Route(NamedTuple):
    """How the requests of one URL are started and answered."""

    start: Callable[[ChatService, bytes], Coroutine[Any, Any, AnyTurn]]
    answer: Callable[[Any], Coroutine[Any, Any, Answer]]
    error: Callable[[ApiError], ErrorBody | MessagesError] = lambda error: error.body


async def _message(turn: ChatTurn) -> Message:
    return message_of(await turn.completion())


async def _response(turn: ChatTurn) -> Response:
    return await ResponseTurn(turn).response()


def _response_error(error: ApiError) -> ErrorBody:
    name_as_sent(error)
    return error.body


ROUTES = {
    "/v1/chat/completions": Route(
        lambda service, body: service.start(body), lambda turn: turn.completion()
    ),
    "/v1/completions": Route(lambda service, body: service.start_completion(body), completion),
    "/v1/responses": Route(
        lambda service, body: service.start(body, read=read_responses_request, id_prefix="resp_"),
        _response,
        _response_error,
    ),
    "/v1/messages": Route(
        lambda service, body: service.start(body, read=read_messages_request, id_prefix="msg_"),
        _message,
        error_body,
    ),
}
"""URL -> its route."""


class BatchRequest(msgspec.Struct, frozen=True):
    custom_id: str
    body: msgspec.Raw
    method: str = "POST"
    url: str = "/v1/chat/completions"


class BatchResponse(msgspec.Struct, frozen=True):
    status_code: int
    request_id: str
    body: Answer | ErrorBody | MessagesError


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
    seen: dict[str, int] = {}
    numbered = _not_blank(lines)

    async def work() -> None:
        for number, line in numbered:
            try:
                result = await _answer(service, number, line, seen)
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


def _fault(request: BatchRequest, number: int, seen: dict[str, int]) -> BatchError | None:
    """What keeps a request from being started; seen: custom_id -> the line that had it first."""
    if request.method != "POST":
        message = f"line {number}: method must be POST, not {request.method!r}"
        return BatchError("invalid_method", message)
    if request.url not in ROUTES:
        message = f"line {number}: url must be one of {', '.join(ROUTES)}, not {request.url!r}"
        return BatchError("invalid_url", message)
    if (first := seen.setdefault(request.custom_id, number)) != number:
        message = f"line {number}: custom_id {request.custom_id!r} is that of line {first}"
        return BatchError("duplicate_custom_id", message)
    return None


async def _answer(
    service: ChatService, number: int, line: bytes, seen: dict[str, int]
) -> BatchResult:
    result_id = f"batch_req_{secrets.token_hex(12)}"
    try:
        request = msgspec.json.decode(line, type=BatchRequest)
    except msgspec.ValidationError as error:
        return _bad_line(result_id, number, from_validation(error).message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _bad_line(result_id, number, f"not valid JSON: {error}")
    fault = _fault(request, number, seen)
    if fault is not None:
        return BatchResult(result_id, request.custom_id, None, fault)
    route = ROUTES[request.url]
    request_id = result_id
    answer: Answer | ErrorBody | MessagesError
    try:
        turn = await _start(route, service, bytes(request.body))
        request_id = turn.id
        async with turn:
            if turn.request.stream:
                raise invalid("A batch request cannot stream.", "stream")
            answer = await route.answer(turn)
        status = 200
    except ApiError as error:
        if error.code == "engine_dead":
            raise
        answer, status = route.error(error), error.status
    response = BatchResponse(status, request_id, answer)
    return BatchResult(result_id, request.custom_id, response, None)


async def _start(route: Route, service: ChatService, body: bytes) -> AnyTurn:
    """Starts the request, waiting its turn while the queue is full: the run filled it itself.

    Lines that ask for many choices fill it sooner than their number tells.
    """
    while True:
        try:
            return await route.start(service, body)
        except ApiError as error:
            if error.status != 429:
                raise
            await asyncio.sleep(error.retry_after or QUEUE_FULL_RETRY_S)


def _bad_line(result_id: str, number: int, message: str) -> BatchResult:
    return BatchResult(
        result_id, None, None, BatchError("invalid_line", f"line {number}: {message}")
    )

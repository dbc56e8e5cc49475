"""Refusals and failures, as clients of the OpenAI API know them.

Every error a client sees is an ApiError; its body is `{"error": {message, type, param, code}}`, in
a JSON answer before the headers went out and in a `data:` line after.
"""

from __future__ import annotations

import math
import re
from http import HTTPStatus
from typing import Any

import msgspec

TYPE_BY_STATUS = {
    401: "invalid_request_error",
    403: "permission_error",
    408: "timeout_error",
    429: "rate_limit_error",
    503: "overloaded",
}
"""`type` where it differs from invalid_request_error (4xx) and server_error (5xx)."""

RESTART_S = 5.0
"""Told to clients of an engine that died: about what another one of a small model takes."""

RETRY_S = 1.0
"""Told to whoever is refused for now by someone who does not know until when."""

_PATH = re.compile(r" - at `([^`]*)`$")
_MISSING = re.compile(r"missing required field `([^`]*)`")


class ErrorObject(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    error: ErrorObject


class ApiError(Exception):
    """A request that gets an error instead of an answer.

    status: HTTP status. param: the field at fault, as a path (`messages[0].content`).
    retry_after: seconds the client should wait, sent as `retry-after` in whole seconds and as
    `retry-after-ms`, which the OpenAI SDKs read first. A 429 and a 503 always have some.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        type: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after
        if retry_after is None and status in (429, 503):
            self.retry_after = RETRY_S
        self.type = type or TYPE_BY_STATUS.get(
            status, "server_error" if status >= 500 else "invalid_request_error"
        )

    @property
    def body(self) -> ErrorBody:
        return ErrorBody(ErrorObject(self.message, self.type, self.param, self.code))

    @property
    def headers(self) -> dict[str, str]:
        headers = {}
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after)))
            headers["retry-after-ms"] = str(max(1, round(1000 * self.retry_after)))
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers


def invalid(message: str, param: str | None, code: str = "invalid_value") -> ApiError:
    """A 400 that names the field."""
    return ApiError(400, message, param=param, code=code)


def unsupported(param: str, what: str) -> ApiError:
    """A 400 for a field that would change the answer and is not honoured."""
    return ApiError(
        400, f"{what} is not supported by this server.", param=param, code="unsupported_parameter"
    )


def engine_is_dead(reason: object, retry_after_s: float = RESTART_S) -> ApiError:
    """A 503: the engine's process is gone, and what ran on it."""
    return ApiError(
        503, f"The engine died: {reason}", code="engine_dead", retry_after=retry_after_s
    )


def from_validation(error: msgspec.ValidationError) -> ApiError:
    """A 400 for a wrong type: msgspec's path `$.messages[0].content` becomes the param.

    A path through a mapping reads `$.logit_bias[...]`; the mapping is what can be named.
    """
    text = str(error)
    path = ""
    if at := _PATH.search(text):
        text = text[: at.start()]
        path = at[1].removeprefix("$").removeprefix(".").removesuffix("[...]")
    if missing := _MISSING.search(text):
        path = f"{path}.{missing[1]}" if path else missing[1]
    return invalid(f"{text} at {path or 'the body'}.", path or None, "invalid_type")


def from_status(status: int, detail: Any = None) -> ApiError:
    """The framework's own errors (404 for a path, 405 for a method) in the shape of all others."""
    phrase = HTTPStatus(status).phrase
    message = detail if isinstance(detail, str) and detail else phrase
    return ApiError(status, message, code=phrase.lower().replace(" ", "_").replace("-", "_"))

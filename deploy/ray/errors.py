"""Errors that the ingress itself tells, in the shape of the dialect that was spoken to it.

The shapes are those of the server behind it; a test compares them.
"""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

MESSAGES_PATHS = ("/v1/messages", "/anthropic/v1/messages")
RESPONSES_PATH = "/v1/responses"
INVALID = "invalid_request_error"
OPENAI_TYPES = {404: INVALID, 408: "timeout_error", 413: INVALID, 503: "overloaded"}
ANTHROPIC_TYPES = {
    404: "not_found_error",
    408: INVALID,
    413: "request_too_large",
    503: "overloaded_error",
}


class Failure(Exception):
    """A request that gets an error instead of an answer, or of the rest of one.

    status: one of those above. retry_after_s: whole seconds that the client should wait; None:
    trying again is of no use.
    """

    def __init__(
        self, status: int, code: str, message: str, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.retry_after_s = retry_after_s

    def body(self, path: str) -> dict[str, Any]:
        """Returns the error as JSON, as it answers a request to `path`."""
        if path.startswith(MESSAGES_PATHS):
            detail = {"type": ANTHROPIC_TYPES[self.status], "message": self.message}
            return {"type": "error", "error": detail}
        kind = OPENAI_TYPES[self.status]
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}

    def response(self, path: str) -> Response:
        """Returns the answer to a request to `path`."""
        headers = {}
        if self.retry_after_s is not None:
            headers = {
                "retry-after": str(self.retry_after_s),
                "retry-after-ms": str(1000 * self.retry_after_s),
            }
        return Response(
            json.dumps(self.body(path)), self.status, headers, media_type="application/json"
        )

    def event(self, path: str) -> bytes:
        """Returns the last event of a stream from `path`."""
        if path.startswith(RESPONSES_PATH):
            event = {"type": "error", "code": self.code, "message": self.message, "param": None}
            return b"event: error\n" + _data(event)
        name = b"event: error\n" if path.startswith(MESSAGES_PATHS) else b""
        return name + _data(self.body(path))


def _data(message: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(message).encode() + b"\n\n"

"""The server's messages: lines for people or JSON for machines, with request ids, without content.

What people send and what models say is never logged: neither text, nor tokens, nor keys.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from contextvars import ContextVar
from typing import Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LogFormat = Literal["text", "json"]

ID_HEADERS = (b"x-request-id", b"request-id")
"""OpenAI's clients read the first, Anthropic's the second."""
_GIVEN_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
"""An id that a proxy in front has given; anything else could forge log lines."""
_LOGGED_PATH_CHARACTERS = 200

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request being answered; empty outside of one."""

access = logging.getLogger("winnow.access")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, request_id, and what is extra."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if current := request_id.get():
            line["request_id"] = current
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """The same for people."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        fields: dict[str, object] = getattr(record, "fields", {})
        shown = {"request_id": request_id.get(), **fields}
        return line + "".join(
            f" {name}={_on_one_line(value)}" for name, value in shown.items() if value != ""
        )


def _on_one_line(value: object) -> str:
    """A line feed in a path must not begin a line of its own."""
    text = str(value)
    return text if text.isprintable() else repr(text)[1:-1]


def set_up_logging(level: str, log_format: LogFormat = "text") -> None:
    """Sends every message to stderr, one line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter()
        if log_format == "json"
        else TextFormatter("%(asctime)s %(levelname)s %(message)s")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # It tells of its own coming and going; ours says more.
    logging.getLogger("uvicorn.error").setLevel("WARNING")


class RequestLog:
    """Pure ASGI: gives every request an id and, when it is over, a line in the log.

    A route's own id, such as that of an answer, is the one in header and line. Query strings are
    left out: people put keys there.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(ID_HEADERS[0], b"").decode("latin-1")
        own = given if _GIVEN_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        token = request_id.set(own)
        begin_s = time.monotonic()
        status, answer_id = 0, own

        async def noting_send(message: Message) -> None:
            nonlocal status, answer_id
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = dict(message["headers"])
                named = next((headers[name] for name in ID_HEADERS if name in headers), None)
                if named is None:
                    added = (ID_HEADERS[0], own.encode())
                    message = {**message, "headers": [*message["headers"], added]}
                else:
                    answer_id = named.decode("latin-1")
            await send(message)

        try:
            await self._app(scope, receive, noting_send)
        finally:
            fields: dict[str, object] = {
                "method": scope["method"],
                "path": scope["path"][:_LOGGED_PATH_CHARACTERS],
                "status": status,
                "seconds": round(time.monotonic() - begin_s, 3),
            }
            if answer_id != own:
                fields["answer_id"] = answer_id
            if tenant := scope.get("state", {}).get("tenant"):
                fields["tenant"] = tenant
            access.info("request", extra={"fields": fields})
            request_id.reset(token)

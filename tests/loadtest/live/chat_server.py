"""A small server that streams chat answers as a test says, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "scripted"
TOKENS_PER_WORD = 2
CHAT_FORMAT_TOKENS = 7

Body = dict[str, Any]
Reply = Callable[[Body], list[Any]]
"""Request -> events: dicts become JSON, bytes are written as they are."""


class Refusal(Exception):
    """Answered with a status instead of a stream."""

    def __init__(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.status, self.body, self.headers = status, body, headers or {}


class Hangup(Exception):
    """The connection is closed without an answer."""


def delta(**fields: Any) -> Body:
    """A chunk of an answer."""
    return {"choices": [{"index": 0, "delta": fields}]}


def finish(reason: str) -> Body:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


def usage(body: Body, output_tokens: int, cached_tokens: int = 0) -> Body:
    """The last chunk: two tokens a word, and some for the format."""
    words = sum(len(str(message.get("content")).split()) for message in body["messages"])
    return {
        "choices": [],
        "usage": {
            "prompt_tokens": words * TOKENS_PER_WORD + CHAT_FORMAT_TOKENS,
            "completion_tokens": output_tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
        },
    }


def obedient(body: Body) -> list[Any]:
    """Calls a tool where one is required, else reasons a word and says two."""
    if body.get("tool_choice") == "required":
        call = {"index": 0, "id": "call_1", "function": {"name": "get_time", "arguments": "{}"}}
        said = [delta(reasoning_content="hm"), delta(tool_calls=[call]), finish("tool_calls")]
    else:
        said = [delta(reasoning_content="hm"), delta(content="Hello"), delta(content=" there")]
        said.append(finish("stop"))
    return [*said, usage(body, 4), b"data: [DONE]\n\n"]


class ChatServer:
    """Serves until it is closed."""

    def __init__(
        self,
        reply: Reply = obedient,
        *,
        models: tuple[Body, ...] = ({"id": MODEL, "max_model_len": 4096},),
        metrics: Callable[[], bytes] | None = None,
        key: str | None = None,
    ) -> None:
        self.reply, self.models, self.metrics, self.key = reply, models, metrics, key
        self.bodies: list[Body] = []
        self.connections = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.chat = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def chat_server(reply: Reply = obedient, **options: Any) -> Iterator[ChatServer]:
    server = ChatServer(reply, **options)
    try:
        yield server
    finally:
        server.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.chat: ChatServer = self.server.chat  # type: ignore[attr-defined]
        self.chat.connections += 1

    def do_GET(self) -> None:
        if self.path == "/metrics" and self.chat.metrics is not None:
            self._whole(200, self.chat.metrics(), "text/plain")
        elif self.path != "/v1/models":
            self._whole(404, b"not found", "text/plain")
        elif self.chat.key and self.headers.get("authorization") != f"Bearer {self.chat.key}":
            self._whole(401, b'{"error": {"message": "no", "code": "invalid_api_key"}}')
        else:
            self._whole(200, json.dumps({"data": list(self.chat.models)}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.chat.bodies.append(body)
        try:
            events = self.chat.reply(body)
        except Refusal as refusal:
            self._whole(refusal.status, refusal.body, headers=refusal.headers)
            return
        except Hangup:
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for event in events:
            if isinstance(event, Hangup):
                self.close_connection = True
                return
            data = event if isinstance(event, bytes) else f"data: {json.dumps(event)}\n\n".encode()
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def _whole(
        self,
        status: int,
        body: bytes,
        kind: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

"""Locust's web page with our charts below its own, and a tab of exact percentiles.

Locust's extension points: a template folder of one's own, routes of a Flask blueprint, and rows for
an extended tab beside its statistics.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import msgspec
from flask import Blueprint, Response, request
from jinja2 import ChoiceLoader, FileSystemLoader, PrefixLoader
from locust.html import DEFAULT_BUILD_PATH

from loadtest.live.moments import Live, rows
from loadtest.live.users import LoadEnvironment

PAGES = Path(__file__).parent / "pages"
TAB = "winnow"
COLUMNS = (
    ("workload", "Workload"),
    ("sent", "Sent"),
    ("answered", "Answered"),
    ("first_token_p50", "First token p50 (ms)"),
    ("first_token_p99", "First token p99 (ms)"),
    ("per_output_token_p50", "Per output token p50 (ms)"),
    ("per_output_token_p99", "Per output token p99 (ms)"),
    ("end_to_end_p99", "Whole answer p99 (ms)"),
    ("output_tokens", "Output tokens"),
)


class WebPage:
    """Serves the page until it is stopped."""

    def __init__(self, environment: LoadEnvironment, live: Live, host: str, port: int) -> None:
        """port: 0 takes a free one. Raises OSError when the address cannot be listened on."""
        port = _free_port(host, port)
        # The page asks locust's parser for options, and that would read ours.
        del sys.argv[1:]
        self.address = f"http://{host}:{port}"
        web = environment.create_web_ui(host, port, delayed_start=True)
        self._web = web
        app = web.app
        assert app is not None
        app.debug = False
        app.jinja_loader = ChoiceLoader(
            [
                FileSystemLoader(PAGES),
                PrefixLoader({"locust": FileSystemLoader(DEFAULT_BUILD_PATH)}),
            ]
        )
        structure = [{"key": key, "title": title} for key, title in COLUMNS]
        web.template_args |= {
            "extended_tabs": [{"title": "Exact percentiles", "key": TAB}],
            "extended_tables": [{"key": TAB, "structure": structure}],
        }
        routes = Blueprint("winnow", __name__)

        @routes.route("/winnow/live.json")
        def moments() -> Response:
            return Response(msgspec.json.encode(list(live.moments)), mimetype="application/json")

        @routes.after_app_request
        def add_rows(response: Response) -> Response:
            if request.path == "/stats/requests" and response.is_json:
                response.set_data(_with_rows(response.get_data(), environment))
            return response

        app.register_blueprint(routes)
        # The first answer of each kind compiles templates; later that would hold up streams.
        with app.test_client() as client:
            for path in ("/", "/stats/requests", "/winnow/live.json"):
                client.get(path)
        web.start()

    def stop(self) -> None:
        """Closes the port."""
        if self._web.server is not None:
            self._web.stop()


def _with_rows(report: bytes, environment: LoadEnvironment) -> bytes:
    """Locust's statistics with the rows of our tab."""
    found: dict[str, Any] = msgspec.json.decode(report)
    found["extended_stats"] = [
        {"key": TAB, "data": [_shown(row) for row in rows(environment.load.run.samples)]}
    ]
    return msgspec.json.encode(found)


def _shown(row: msgspec.Struct) -> dict[str, Any]:
    values = msgspec.structs.asdict(row)
    return {
        name: round(value, 2) if isinstance(value, float) else value
        for name, value in values.items()
    }


def _free_port(host: str, port: int) -> int:
    """The port itself, or a free one; raises OSError when it is taken."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            where = f"no web page on {host}:{port}: {error.strerror}"
            raise OSError(error.errno, where) from None
        return int(probe.getsockname()[1])

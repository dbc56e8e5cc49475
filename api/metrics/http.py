"""Answers by route and class of status; pure ASGI, so streams pass through untouched."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.metrics import names
from api.metrics.tracing import traceparent
from api.metrics.values import Number, Values

UNROUTED = "other"
"""Paths nobody serves, and those that orchestrators poll."""
UNCOUNTED = frozenset(
    {"/health", "/ready", "/version", "/metrics"}
    | {"/docs", "/docs/oauth2-redirect", "/openapi.json"}
)


class HttpCounts:
    """Counts of all requests, whoever answers them."""

    def __init__(self, values: Values) -> None:
        self._values = values
        self._in_flight = values.number(names.HTTP_IN_FLIGHT)
        self._answers: dict[tuple[str, int], Number] = {}

    def expect(self, routes: Iterable[str]) -> None:
        """Exposes the routes at 0: a rate has to know where the first error started from."""
        for route in (UNROUTED, *routes):
            if route not in UNCOUNTED:
                for code in names.CODES:
                    self._values.number(names.HTTP_REQUESTS, route, code)

    def enter(self) -> None:
        """A request came in."""
        self._in_flight.add()

    def leave(self, route: str, status: int) -> None:
        """It was answered. route: the template of the path, never what a client wrote."""
        self._in_flight.add(-1)
        found = self._answers.get((route, status // 100))
        if found is None:
            code = f"{status // 100}xx"
            found = self._values.number(
                names.HTTP_REQUESTS, route, code if code in names.CODES else names.CODES[0]
            )
            self._answers[route, status // 100] = found
        found.add()


class HttpMeter:
    """Around the whole application, guards included: what they refuse counts, too."""

    def __init__(self, app: ASGIApp, counts: HttpCounts) -> None:
        self._app, self._counts = app, counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._counts.enter()
        token = traceparent.set(_traceparent(scope))
        try:
            await self._app(scope, receive, note)
        finally:
            traceparent.reset(token)
            self._counts.leave(route_of(scope), status)


def _traceparent(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"traceparent":
            return str(value.decode("latin-1"))
    return None


def route_of(scope: Scope) -> str:
    """Returns the template of the route that answered, which the router has put into the scope."""
    path = getattr(scope.get("route"), "path", UNROUTED)
    return UNROUTED if path in UNCOUNTED else str(path)

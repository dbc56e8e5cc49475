"""What every route needs: who asks and until when, an end when the client leaves, JSON answers."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from math import nan
from typing import Any, TypeVar

import msgspec
from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from api.config import ServerConfig
from api.errors import invalid
from api.protection.priority import PriorityRule
from api.sse import disconnected

T = TypeVar("T")

DEADLINE_HEADER = "x-request-timeout"
LONGEST_DEADLINE_S = 86_400.0


class JsonResponse(Response):
    """A JSON answer of a msgspec struct or of plain data."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


def tenant_of(request: Request) -> str:
    """Who asks, by the API key; empty without keys."""
    tenant: str = getattr(request.state, "tenant", "")
    return tenant


def priority_of(request: Request, config: ServerConfig) -> PriorityRule:
    """What the sender may say of its requests' priority: by its API key, and by --client-priority.

    Without keys its own is 0.
    """
    return PriorityRule(getattr(request.state, "priority", 0), config.client_priority)


def deadline_s_of(request: Request) -> float | None:
    """Seconds in which the first token must come; raises ApiError(400) for what is no such time."""
    text = request.headers.get(DEADLINE_HEADER)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = nan
    if not 0 < seconds <= LONGEST_DEADLINE_S:
        raise invalid(
            f"{DEADLINE_HEADER} is {text!r}; it must be seconds in (0, {LONGEST_DEADLINE_S:g}].",
            DEADLINE_HEADER,
        )
    return seconds


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Returns what `work` returns; cancels it when the client goes away: ClientDisconnect."""
    task = asyncio.create_task(work)
    watch = asyncio.create_task(disconnected(request.receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)

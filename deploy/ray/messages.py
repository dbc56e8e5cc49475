"""What the ingress and a replica tell each other about one request, in this order.

Request -> Routed, then NotTaken, or Head, bytes ..., and Broken if the end did not come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deploy.ray.affinity import Block


@dataclass(frozen=True)
class Request:
    """An HTTP request as it came."""

    method: str
    target: str
    """Path and query."""
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class Wishes:
    """Where a request should go; the router reads it where it is made, and it travels empty.

    blocks: the beginning of its conversation. avoid: replicas that could not take it. only: the one
    that is meant; another one gets it if that is not there.
    """

    def __init__(
        self,
        blocks: list[Block] | None = None,
        avoid: tuple[str, ...] = (),
        only: str | None = None,
    ) -> None:
        self.blocks, self.avoid, self.only = blocks or [], avoid, only

    def __reduce__(self) -> tuple[Any, ...]:
        return Wishes, ()


@dataclass(frozen=True)
class Routed:
    """The replica has the request; the first message, at once."""

    replica: str


@dataclass(frozen=True)
class NotTaken:
    """The replica's server has not seen the request: another one may have it."""

    reason: str


@dataclass(frozen=True)
class Head:
    """The answer begins."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True)
class Broken:
    """The replica's server has seen the request and will not end the answer."""

    reason: str


Message = Routed | NotTaken | Head | bytes | Broken

"""One replica: a Winnow server, its health, and its answers as a stream of messages."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, Sequence

from ray import serve

from deploy.ray.messages import Message, Request, Routed, Wishes
from deploy.ray.server import WinnowServer

RAY_ONLY = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "OMP_NUM_THREADS")
"""Variables of Ray's environment that are wrong in Winnow's."""


class Replica:
    """A deployment. Ray starts it, asks for its health, counts its calls and stops it."""

    async def __init__(self, command: Sequence[str], grace_s: float) -> None:  # type: ignore[misc]
        """command: `winnow serve` and its options. Raises ServerFailed if it does not start."""
        self.name = serve.get_replica_context().replica_id.unique_id
        environment = {name: text for name, text in os.environ.items() if name not in RAY_ONLY}
        self._server = await WinnowServer.start(command, environment, grace_s)

    async def check_health(self) -> None:
        """Called by Ray, which replaces the replica after three times that this raises."""
        await self._server.check_health()

    async def tell_name(self) -> str:
        """Returns the name by which requests can ask for this replica."""
        return self.name

    async def forward(self, request: Request, wishes: Wishes) -> AsyncGenerator[Message, None]:
        """Yields the answer to one request. wishes: the router's; empty here."""
        yield Routed(self.name)
        async with contextlib.aclosing(self._server.answer(request)) as messages:
            async for message in messages:
                yield message

    async def __del__(self) -> None:
        """Called by Ray when the last request of a replica that is to stop is over."""
        server = getattr(self, "_server", None)
        if server is not None:
            await server.stop()

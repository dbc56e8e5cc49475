"""api.stopping: signals, and what a server may need to stop."""

from __future__ import annotations

import asyncio
import os
import signal

from api.config import ServerConfig
from api.stopping import ENGINE_CLOSE_S, StopSignals, answers_limit_s, stop_limit_s

SHORT = ServerConfig(drain_delay_s=0, shutdown_grace_s=0)
LONG = ServerConfig(drain_delay_s=15, shutdown_grace_s=120, api_server_count=4)


def test_the_limit_grows_with_what_was_asked_for_and_ends_with_the_engine() -> None:
    assert stop_limit_s(LONG) - stop_limit_s(SHORT) == 135
    for config in (SHORT, LONG):
        assert stop_limit_s(config) - answers_limit_s(config) == ENGINE_CLOSE_S > 10


def test_the_first_signal_asks_and_the_second_hurries() -> None:
    async def scenario() -> None:
        stop = StopSignals()
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.asked.wait()
        assert not stop.hurried.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        await stop.hurried.wait()

    asyncio.run(scenario())

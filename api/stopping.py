"""How a server is asked to stop, and how long it may take, for those who kill it after that."""

from __future__ import annotations

import asyncio
import signal

from api.config import ServerConfig
from engine import client

UNREAD_GRACE_S = 10
"""For clients that do not even read the error their stream ends with."""
PROCESS_EXIT_GRACE_S = 10.0
"""How long a process that has answered its last request may take to end by itself."""
ENGINE_CLOSE_S = client.UNREAD_GRACE_S + client.EXIT_GRACE_S + client.STACKS_GRACE_S
"""The longest that closing an engine takes, one that hangs included."""


class StopSignals:
    """SIGINT and SIGTERM: the first asks to stop, the second to do it at once."""

    def __init__(self) -> None:
        self.asked, self.hurried = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self.ask)

    def ask(self) -> None:
        """As a signal does."""
        if self.asked.is_set():
            self.hurried.set()
        self.asked.set()


def answers_limit_s(config: ServerConfig) -> float:
    """Returns the seconds from a signal to stop until every API process has ended, or is killed:
    load balancers look away, answers end, clients read their last error, processes exit."""
    return config.drain_delay_s + config.shutdown_grace_s + UNREAD_GRACE_S + PROCESS_EXIT_GRACE_S


def stop_limit_s(config: ServerConfig) -> float:
    """Returns the longest that a server takes to stop, its engine last.

    Whoever stops it has to wait for longer, or what would have ended well is killed.
    """
    return answers_limit_s(config) + ENGINE_CLOSE_S

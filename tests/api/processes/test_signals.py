"""api.processes.parent: which signals reach a process, and when."""

from __future__ import annotations

import signal
from typing import Any

from api.metrics.exposition import Exposition
from api.metrics.metrics import Metrics
from api.processes.parent import ApiProcess
from api.supervisor import Deaths, RestartLimit


class Process:
    """Notes the signals that it is sent."""

    returncode = None

    def __init__(self) -> None:
        self.heard: list[int] = []

    def send_signal(self, number: int) -> None:
        self.heard.append(number)


def test_a_process_that_cannot_handle_it_yet_is_not_told_to_read_its_files_anew() -> None:
    metrics = Metrics("model", draining=lambda: False)
    role: Any = None
    one = ApiProcess(role, Exposition(metrics), metrics, Deaths(RestartLimit(3, 600.0)), [])
    process: Any = Process()
    one._process = process
    one.tell(signal.SIGHUP)
    assert process.heard == [], "its default is to end"
    one._answers = True
    one.tell(signal.SIGHUP)
    one._answers = False
    one.tell(signal.SIGTERM)
    assert process.heard == [signal.SIGHUP, signal.SIGTERM]

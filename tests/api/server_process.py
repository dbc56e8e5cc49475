"""`winnow serve` in a process of its own, on a free port."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).parents[2]


class ServerProcess:
    """A running server. Its messages collect in `log`."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "winnow.py", "serve", "--port", "0", "--threads", "1", *options],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log = ""
        self.url = ""
        self._started = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self._started.wait(timeout=120)
        assert self.url, f"the server did not start:\n{self.log}"

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self.log += line
                if match := re.match(r" +url +(https?://\S+)/v1", line):
                    self.url = match[1]
                    self._started.set()
        self._started.set()

    def close(self) -> int:
        """Stops the server as an orchestrator would; returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout=60)
        self._reader.join(timeout=60)
        return status

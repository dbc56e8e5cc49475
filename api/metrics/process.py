"""What the processes that speak HTTP use, added up where there are several.

The client library's `process_*` are of the one process that is scraped, which need not be one of
these.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from api.metrics import names
from api.metrics.values import Values

STATM = Path("/proc/self/statm")


class ProcessUse:
    """Of the process that `note` is called in."""

    def __init__(self, values: Values) -> None:
        self._resident = values.number(names.API_RESIDENT)
        self._processor = values.number(names.API_PROCESSOR)

    def note(self) -> None:
        """Takes down what it uses now; memory on Linux only."""
        self._processor.value = time.process_time()
        try:
            pages = int(STATM.read_text().split()[1])
        except OSError:
            return
        self._resident.value = float(pages * os.sysconf("SC_PAGE_SIZE"))

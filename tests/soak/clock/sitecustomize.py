"""A wall clock that can be set: in every Python process that finds this folder on its path.

Python imports this module before anything else. `time.time` then adds the seconds that stand in the
file SOAK_CLOCK. What the C library tells others, such as file times, stays right.
"""

from __future__ import annotations

import os
import time

_real_time, _real_time_ns = time.time, time.time_ns


def _offset_s() -> float:
    try:
        with open(os.environ["SOAK_CLOCK"]) as file:
            return float(file.read() or 0)
    except (KeyError, OSError, ValueError):
        return 0.0


def _time() -> float:
    return _real_time() + _offset_s()


def _time_ns() -> int:
    return _real_time_ns() + int(_offset_s() * 1e9)


time.time, time.time_ns = _time, _time_ns

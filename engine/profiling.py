"""A profile of the next steps, for whoever asks: operators and kernels on a time line."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from engine.messages import Profile, Profiled

logger = logging.getLogger("winnow.engine")


class StepProfiler:
    """Off until it is asked; then it runs for a number of steps and writes one file."""

    def __init__(self) -> None:
        self._running: profile | None = None
        self._request = Profile(0, "")
        self._steps = 0

    def start(self, request: Profile) -> Profiled | None:
        """Begins with the next step. Returns an answer only when that cannot be."""
        if self._running is not None:
            return Profiled(request.file, 0, "a profile is being taken")
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._request, self._steps = request, 0
        self._running = profile(activities=activities)
        self._running.start()
        return None

    def stepped(self) -> Profiled | None:
        """A step has run. Returns the answer after the last one, when the file is written."""
        if self._running is None:
            return None
        self._steps += 1
        if self._steps < self._request.steps:
            return None
        running, self._running = self._running, None
        running.stop()
        try:
            running.export_chrome_trace(self._request.file)
        except (OSError, RuntimeError) as error:
            return Profiled(self._request.file, self._steps, str(error))
        if not Path(self._request.file).is_file():  # torch only logs it
            return Profiled(self._request.file, self._steps, "the file could not be written")
        logger.info("profiled %d steps into %s", self._steps, self._request.file)
        return Profiled(self._request.file, self._steps)

"""Seconds of an op on the device, and what the device itself can do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

FLUSHED_BYTES = 256 * 2**20
"""Written before every run: more than the L2 cache holds."""
COPIED_BYTES = 2 * 2**30
MATRIX = 8192
WARM_UPS = 2


@dataclass(frozen=True)
class Ceilings:
    """What the device does at best, measured in the same run."""

    bytes_per_s: float
    """A copy, bytes read and written."""
    bf16_flops_per_s: float
    """PyTorch's product of two 8,192 x 8,192 matrices."""
    fp8_flops_per_s: float
    """The same in FP8 with one scale."""
    fp8_is_assumed: bool
    """PyTorch has no such product here: twice bfloat16's is taken."""


class Clock:
    """Measures one device."""

    def __init__(self, device: torch.device, *, runs: int, longest_s: float) -> None:
        """runs: of each op; fewer when they take longest_s together."""
        self.device, self._runs, self._longest_s = device, runs, longest_s
        self._flushed = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device=device)

    def seconds(self, run: Callable[[], object]) -> float:
        """Returns the median seconds of an op whose inputs are not in the L2 cache.

        The op runs as a CUDA graph, so that launching it from Python does not count.
        """
        for _ in range(WARM_UPS):
            run()
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        times: list[float] = []
        begin = time.perf_counter()
        while len(times) < self._runs:
            self._flushed.zero_()
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            stop.record()
            torch.cuda.synchronize(self.device)
            times.append(start.elapsed_time(stop) / 1e3)
            if len(times) >= 3 and time.perf_counter() - begin > self._longest_s:
                break
        return statistics.median(times)

    def ceilings(self) -> Ceilings:
        """Measures a copy and products."""
        source, target = (
            torch.zeros(COPIED_BYTES, dtype=torch.uint8, device=self.device) for _ in range(2)
        )
        copy_s = self.seconds(lambda: target.copy_(source))
        a, b = (
            torch.randn(MATRIX, MATRIX, device=self.device, dtype=torch.bfloat16) for _ in range(2)
        )
        flops = 2 * MATRIX**3
        bf16_s = self.seconds(lambda: a @ b)
        assumed = not hasattr(torch, "_scaled_mm")
        fp8_s = bf16_s / 2
        if not assumed:
            x, y = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).T
            one = torch.ones((), device=self.device)
            fp8_s = self.seconds(lambda: torch._scaled_mm(x, y, one, one, out_dtype=torch.bfloat16))
        return Ceilings(2 * COPIED_BYTES / copy_s, flops / bf16_s, flops / fp8_s, assumed)

"""Measures this machine with numpy alone: the data sheet of a CPU, as the presets take it.

    python -m cost_model.measure > machine.json     # progress goes to stderr
    winnow cost request --gpu machine.json ...

Both rates are the best of several runs on all cores, on an idle machine: what the hardware reaches
in a loop that does nothing else. An engine reaches a part of that.
"""

from __future__ import annotations

import datetime
import os
import platform
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import msgspec
import numpy as np

from cost_model.machines import NOMINAL_USD_PER_CORE_HOUR, Machine

MATMUL_SIZES = (1024, 2048, 4096)
"""Sides of square products; the best is taken, so that no size is blamed for its overhead."""
REPEATS = 7
COPY_BYTES_IN_CACHES = 4
"""Each of the two arrays copied is this many times the last-level cache."""
SMALLEST_COPY_BYTES = 256 << 20
"""Where the cache's size is not known, or small."""
LARGEST_COPY_BYTES = 2 << 30


def measure(
    sizes: Sequence[int] = MATMUL_SIZES,
    copy_bytes: int | None = None,
    repeats: int = REPEATS,
) -> Machine:
    """The data sheet of this machine, called `cpu`; takes some seconds and says so on stderr.

    FLOP/s: float32 products of numpy's BLAS, with the threads it takes by itself. Bandwidth: a copy
    of `copy_bytes` (None: four last-level caches) with one thread per core, reading and writing
    counted once each. 8-bit products have the same rate: a CPU has none of their own.
    """
    flops = max(_matmul_flops(size, repeats) for size in sizes)
    bandwidth = _copy_bandwidth(copy_bytes or _copy_bytes(), repeats)
    cores = core_count()
    price = NOMINAL_USD_PER_CORE_HOUR * cores
    return Machine(
        name="cpu",
        bf16_flops=flops,
        fp8_flops=flops,
        memory_bandwidth=bandwidth,
        memory_bytes=float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
        usd_per_hour=price,
        measured=True,
        source=(
            f"measured by `python -m cost_model.measure` on {datetime.date.today()}: one machine, "
            f"{cores} cores of {_processor()}, float32 by numpy {np.__version__}, copy with "
            f"{cores} threads; price nominal, {NOMINAL_USD_PER_CORE_HOUR} USD per core and hour"
        ),
    )


def core_count() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _best_seconds(run: Callable[[], object], repeats: int) -> float:
    """The shortest run after one that does not count."""
    run()
    best = float("inf")
    for _ in range(repeats):
        start = perf_counter()
        run()
        best = min(best, perf_counter() - start)
    return best


def _matmul_flops(size: int, repeats: int) -> float:
    random = np.random.default_rng(0)
    left, right = random.random((2, size, size), dtype=np.float32)
    product = np.empty_like(left)
    flops = 2 * size**3 / _best_seconds(lambda: np.matmul(left, right, out=product), repeats)
    print(f"float32 product {size} x {size}: {flops / 1e9:.1f} GFLOP/s", file=sys.stderr)
    return flops


def _copy_bandwidth(copy_bytes: int, repeats: int) -> float:
    """Bytes read and written per second; numpy copies without holding the interpreter's lock."""
    source = np.ones(copy_bytes, dtype=np.uint8)
    target = np.zeros_like(source)  # written once now, so that its pages exist
    cores = core_count()
    parts = list(zip(np.array_split(target, cores), np.array_split(source, cores), strict=True))
    with ThreadPoolExecutor(cores) as threads:
        seconds = _best_seconds(
            lambda: list(threads.map(lambda part: np.copyto(*part), parts)), repeats
        )
    bandwidth = 2 * copy_bytes / seconds
    print(
        f"copy of {copy_bytes / 2**20:.0f} MiB: {bandwidth / 1e9:.1f} GB/s read and written",
        file=sys.stderr,
    )
    return bandwidth


def _copy_bytes() -> int:
    wanted = COPY_BYTES_IN_CACHES * _last_level_cache_bytes()
    return min(max(wanted, SMALLEST_COPY_BYTES), LARGEST_COPY_BYTES)


def _last_level_cache_bytes() -> int:
    """The largest cache of the first core by Linux's account; 0 where it gives none."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    texts = (
        file.read_text().strip()
        for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    )
    return max((int(text[:-1]) * units[text[-1]] for text in texts), default=0)


def _processor() -> str:
    """The processor's name as the operating system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> int:
    """Prints the data sheet as JSON."""
    sheet = msgspec.json.encode(measure())
    print(msgspec.json.format(sheet, indent=2).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())

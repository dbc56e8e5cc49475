"""Runs a server for half an hour under mixed load while it is harmed, and says what was lost.

    python -m tests.soak.run --minutes 30 [--clients 8] [--seed N] [-- OPTIONS OF winnow serve]

Clients chat, stream, call tools, leave in the middle and send garbage. In turn the engine is
killed, the wall clock jumps by up to a day, a step hangs (SIGSTOP: it never ends), and the disk
below the log is full. The last third does no harm, so that the engine's memory can be judged, too.
The exit status is 0 if every line of the table is as it must be.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import httpx
from tqdm import tqdm

from tests.soak.target import SILENCE_LIMIT_S, Target, resident_bytes
from tests.soak.traffic import Findings, client_of

READY_PATIENCE_S = 300.0
RECOVERY_LIMIT_S = 10.0
"""From the death of an engine to the next answer."""
GROWTH_LIMIT = 0.02
JUDGED_S = 240.0
"""A shorter stretch says nothing about memory."""
FAULTS = ("kill", "clock", "hang", "disk")
CALM_SHARE = 1 / 3
WARM_SHARE = 0.3
"""Of a stretch; what is held at its end is what is held after warm-up."""
FULL_DISK_S = 10.0
DAY_S = 86_400.0


class Check(NamedTuple):
    """One line of the table."""

    what: str
    found: str
    good: bool | None
    """None: the run was too short to say."""


class Memory:
    """Resident bytes of a process, once a second."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, int]] = []

    def sample(self, pid: int | None) -> None:
        if pid is not None:
            with contextlib.suppress(OSError):  # it has just died
                self.take(time.monotonic(), resident_bytes(pid))

    def take(self, at_s: float, size_bytes: int) -> None:
        """Adds a sample."""
        self._samples.append((at_s, size_bytes))

    def restart(self) -> None:
        self._samples.clear()

    def check(self, whose: str) -> Check:
        """Compares the median of the samples right after warm-up with that of the last ones."""
        what = f"resident memory of {whose}, growth <= {GROWTH_LIMIT:.0%}"
        samples = self._samples
        if len(samples) < 20:
            return Check(what, "not measured", None)
        seconds = samples[-1][0] - samples[0][0]
        warm = samples[int(len(samples) * WARM_SHARE) :]
        some = max(5, len(warm) // 5)
        before = median(size for _, size in warm[:some])
        after = median(size for _, size in warm[-some:])
        growth = after / before - 1
        found = f"{before / 2**20:.0f} -> {after / 2**20:.0f} MiB, {growth:+.1%}"
        return Check(what, found, growth <= GROWTH_LIMIT if seconds >= JUDGED_S else None)


class Soak:
    """One run."""

    def __init__(self, target: Target, seconds: float, clients: int, seed: int) -> None:
        self.target, self.seconds, self.clients, self.seed = target, seconds, clients, seed
        self.findings = Findings()
        self.done: dict[str, int] = dict.fromkeys(FAULTS, 0)
        self.recoveries_s: dict[str, list[float]] = {"kill": [], "hang": []}
        self.api, self.engine = Memory(), Memory()
        self._chance = random.Random(seed)

    async def run(self) -> list[Check]:
        """Returns the table."""
        async with httpx.AsyncClient(base_url=self.target.url, timeout=30) as probe:
            await self._until_ready(probe)
            model = (await probe.get("/v1/models")).json()["data"][0]["id"]
            stop = asyncio.Event()
            clients = [
                asyncio.create_task(
                    client_of(self.target.url, model, self.seed + number, self.findings, stop)
                )
                for number in range(self.clients)
            ]
            watch = asyncio.create_task(self._watch())
            try:
                await self._harm(probe, model)
            finally:
                stop.set()
                watch.cancel()
                await asyncio.gather(*clients)
            pages = await self._pages(probe)
            restarts = await self._restarts(probe)
        status = await asyncio.to_thread(self.target.stop)
        return self._table(pages, restarts, status)

    async def _until_ready(self, probe: httpx.AsyncClient) -> None:
        async with asyncio.timeout(READY_PATIENCE_S):
            while True:
                try:
                    if (await probe.get("/ready")).status_code == 200:
                        return
                except httpx.TransportError:
                    if self.target.process.poll() is not None:
                        raise
                await asyncio.sleep(0.1)

    async def _watch(self) -> None:
        """Draws the bar and takes the samples."""
        with tqdm(total=round(self.seconds), unit="s", file=sys.stderr) as bar:
            while True:
                self.api.sample(self.target.process.pid)
                self.engine.sample(self.target.engine)
                outcomes = self.findings.outcomes
                bar.set_postfix_str(" ".join(f"{k} {v}" for k, v in sorted(outcomes.items())))
                await asyncio.sleep(1)
                bar.update(min(1, bar.total - bar.n))

    async def _harm(self, probe: httpx.AsyncClient, model: str) -> None:
        begin_s = time.monotonic()
        pause_s = min(60.0, max(15.0, self.seconds / 16))
        calm_s = begin_s + self.seconds * (1 - CALM_SHARE)
        faults = 0
        while (now_s := time.monotonic()) < begin_s + self.seconds:
            await asyncio.sleep(min(pause_s, begin_s + self.seconds - now_s))
            if time.monotonic() >= calm_s:
                if faults >= 0:
                    self.engine.restart()
                    faults = -1
                continue
            fault = FAULTS[faults % len(FAULTS)]
            faults += 1
            self.done[fault] += await self._do(fault, probe, model)

    async def _do(self, fault: str, probe: httpx.AsyncClient, model: str) -> bool:
        match fault:
            case "clock":
                self.target.set_clock(self._chance.uniform(-DAY_S, DAY_S))
            case "disk":
                self.target.fill_disk(True)
                await asyncio.sleep(FULL_DISK_S)
                self.target.fill_disk(False)
            case _:
                number = signal.SIGKILL if fault == "kill" else signal.SIGSTOP
                begin_s = time.monotonic()
                if not self.target.harm_engine(number):
                    return False
                await self._until_answered(probe, model)
                self.recoveries_s[fault].append(time.monotonic() - begin_s)
        return True

    async def _until_answered(self, probe: httpx.AsyncClient, model: str) -> None:
        """Waits until a new request is answered; the first ones still meet the dead engine."""
        body: Any = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}
        body["max_tokens"] = 1
        async with asyncio.timeout(READY_PATIENCE_S):
            while True:
                answer = await probe.post("/v1/chat/completions", json=body)
                if answer.status_code == 200:
                    return
                await asyncio.sleep(0.25)

    async def _pages(self, probe: httpx.AsyncClient) -> Check:
        what, snapshot = "every page back, live + idle + free = all", {}
        try:
            async with asyncio.timeout(READY_PATIENCE_S):
                await self._until_ready(probe)
                while True:
                    snapshot = (await probe.get("/server_info")).json()["snapshot"] or {}
                    busy = ("running", "waiting", "live_pages")
                    if snapshot and not any(snapshot[name] for name in busy):
                        break
                    await asyncio.sleep(0.1)
        except TimeoutError:
            return Check(what, f"{snapshot}", False)
        idle, free, total = (snapshot[f"{n}_pages"] for n in ("idle", "free", "total"))
        found = f"{sum(idle.values())} + {free} = {total}"
        return Check(what, found, sum(idle.values()) + free == total)

    async def _restarts(self, probe: httpx.AsyncClient) -> Check:
        text = (await probe.get("/metrics")).text
        (line,) = (row for row in text.splitlines() if row.startswith("winnow_engine_restarts_"))
        count, harmed = round(float(line.split()[-1])), self.done["kill"] + self.done["hang"]
        return Check("engines started anew = harmed", f"{count} = {harmed}", count == harmed)

    def _table(self, pages: Check, restarts: Check, status: int) -> list[Check]:
        outcomes = self.findings.outcomes
        checks = [
            Check(kind, str(outcomes[kind]), outcomes[kind] > 0 or kind == "failed")  # type: ignore[index]
            for kind in ("answered", "refused", "failed", "left")
        ]
        checks.append(
            Check("requests that hung or broke", str(outcomes["broken"]), not outcomes["broken"])
        )
        for fault, limit_s in (("kill", 0.0), ("hang", SILENCE_LIMIT_S)):
            times_s = self.recoveries_s[fault]
            what = f"answers after a {fault} <= {limit_s + RECOVERY_LIMIT_S:g} s"
            found = ", ".join(f"{s:.1f}" for s in times_s)
            good = max(times_s) <= limit_s + RECOVERY_LIMIT_S if times_s else None
            checks.append(Check(what, found or "none", good))
        for fault in ("clock", "disk"):
            checks.append(Check(f"{fault} faults", str(self.done[fault]), None))
        checks += [
            restarts,
            pages,
            self.api.check("the API process"),
            self.engine.check("the engine"),
        ]
        log = self.target.log.read_text(errors="replace")
        tracebacks = log.count("Traceback (most recent call last)")
        checks.append(Check("tracebacks in the log", str(tracebacks), not tracebacks))
        checks.append(Check("exit status", str(status), status == 0))
        return checks


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs for --minutes; prints the table; returns 0 if all is well, else 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, help="of the clients; absent: a random one")
    parser.add_argument("--log", type=Path, help="where the server's log goes at the end")
    parser.add_argument("serve", nargs="*", help="options of winnow serve, behind --")
    options = parser.parse_args(arguments)
    seed = random.randrange(2**31) if options.seed is None else options.seed
    defaults = ["--kv-cache-bytes", "64MiB", "--max-queued-requests", "64", "--threads", "1"]
    with tempfile.TemporaryDirectory(prefix="winnow-soak-") as folder:
        target = Target(Path(folder), [*defaults, *options.serve])
        soak = Soak(target, 60 * options.minutes, options.clients, seed)
        try:
            checks = asyncio.run(soak.run())
        finally:
            if target.process.poll() is None:
                target.process.kill()
                target.process.wait()
            if options.log is not None:
                options.log.write_bytes(target.log.read_bytes())
    print(f"soak: {options.minutes:g} minutes, {options.clients} clients, seed {seed}")
    for check in checks:
        verdict = {True: "ok", False: "BAD", None: "-"}[check.good]
        print(f"  {verdict:<4}{check.what:<52}{check.found}")
    for example in soak.findings.examples:
        print(f"  broken: {example}")
    return 1 if any(check.good is False for check in checks) else 0


if __name__ == "__main__":
    sys.exit(main())

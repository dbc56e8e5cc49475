"""Runs a server for half an hour under mixed load while it is harmed, and says what was lost.

    python -m tests.soak.run --minutes 30 [--clients 8] [--seed N] [-- OPTIONS OF winnow serve]

Clients chat, stream, call tools, leave in the middle and send garbage. In turn the engine is
killed, one of two API processes is, the wall clock jumps by up to a day, a step hangs (SIGSTOP: it
never ends), and the disk below the log is full. The last third does no harm, so that the memory of
the engine and of the API processes can be judged, too.
The exit status is 0 if every line of the table is as it must be.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from tqdm import tqdm

from tests.soak.memory import Check, Memory
from tests.soak.target import SILENCE_LIMIT_S, Target
from tests.soak.traffic import Findings, client_of

READY_PATIENCE_S = 300.0
RECOVERY_LIMIT_S = 10.0
"""From the death of an engine to the next answer."""
API_REPLACED_LIMIT_S = 30.0
"""From the death of an API process to the next one's answers; the others answer meanwhile."""
API_PROCESSES = 2
PROBES = 16
"""Connections, so that every API process gets one."""
FAULTS = ("kill", "api", "clock", "hang", "disk")
CALM_SHARE = 1 / 3
FULL_DISK_S = 10.0
DAY_S = 86_400.0


class Soak:
    """One run."""

    def __init__(self, target: Target, seconds: float, clients: int, seed: int) -> None:
        self.target, self.seconds, self.clients, self.seed = target, seconds, clients, seed
        self.findings = Findings()
        self.done: dict[str, int] = dict.fromkeys(FAULTS, 0)
        self.recoveries_s: dict[str, list[float]] = {"kill": [], "hang": [], "api": []}
        self.parent, self.apis, self.engine = Memory(), Memory(), Memory()
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
                self.parent.sample(self.target.process.pid)
                self.apis.sample(*self.target.apis)
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
                    self.apis.restart()
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
            case "api":
                return await self._kill_api()
            case _:
                number = signal.SIGKILL if fault == "kill" else signal.SIGSTOP
                begin_s = time.monotonic()
                if not self.target.harm_engine(number):
                    return False
                await self._until_answered(probe, model)
                self.recoveries_s[fault].append(time.monotonic() - begin_s)
        return True

    async def _kill_api(self) -> bool:
        """Kills one of the API processes and waits for another; False if there is only the one."""
        before = self.target.apis
        if len(before) < 2:
            return False
        begin_s = time.monotonic()
        self.findings.api_killed(begin_s)
        os.kill(self._chance.choice(sorted(before)), signal.SIGKILL)
        async with asyncio.timeout(READY_PATIENCE_S):
            while before <= self.target.apis or not await self._all_ready():
                await asyncio.sleep(0.1)
        self.recoveries_s["api"].append(time.monotonic() - begin_s)
        return True

    async def _all_ready(self) -> bool:
        """Whether every API process is there and answers, as far as many connections can tell."""
        try:
            listening = self.target.listening
        except OSError:  # one has just ended
            return False
        if len(listening) < API_PROCESSES:
            return False
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=self.target.url, timeout=30, limits=limits) as client:
            try:
                answers = [await client.get("/ready") for _ in range(PROBES)]
            except httpx.TransportError:  # came to the socket of the dead one
                return False
        return all(answer.status_code == 200 for answer in answers)

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

    async def _restarts(self, probe: httpx.AsyncClient) -> list[Check]:
        text = (await probe.get("/metrics")).text
        checks = []
        for what, metric, harmed in (
            ("engines", "engine_restarts", self.done["kill"] + self.done["hang"]),
            ("API processes", "api_process_restarts", self.done["api"]),
        ):
            (line,) = (row for row in text.splitlines() if row.startswith(f"winnow_{metric}_total"))
            count = round(float(line.split()[-1]))
            checks.append(
                Check(f"{what} started anew = harmed", f"{count} = {harmed}", count == harmed)
            )
        return checks

    def _table(self, pages: Check, restarts: list[Check], status: int) -> list[Check]:
        outcomes = self.findings.outcomes
        checks = [
            Check(kind, str(outcomes[kind]), outcomes[kind] > 0 or kind == "failed")  # type: ignore[index]
            for kind in ("answered", "refused", "failed", "left")
        ]
        checks.append(
            Check("requests that hung or broke", str(outcomes["broken"]), not outcomes["broken"])
        )
        kills, spared = self.done["api"], self.findings.spared
        cut = f"{outcomes['cut']} cut, {spared} went on, {kills} kills"
        checks.append(Check("requests in flight when an API process died", cut, None))
        for fault, what, limit_s in (
            ("kill", "answers after a kill", RECOVERY_LIMIT_S),
            ("hang", "answers after a hang", SILENCE_LIMIT_S + RECOVERY_LIMIT_S),
            ("api", "another API process", API_REPLACED_LIMIT_S),
        ):
            times_s = self.recoveries_s[fault]
            found = ", ".join(f"{s:.1f}" for s in times_s)
            good = max(times_s) <= limit_s if times_s else None
            checks.append(Check(f"{what} <= {limit_s:g} s", found or "none", good))
        for fault in ("clock", "disk"):
            checks.append(Check(f"{fault} faults", str(self.done[fault]), None))
        checks += [
            *restarts,
            pages,
            self.parent.check("the parent"),
            self.apis.check("the API processes"),
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
    defaults += ["--api-server-count", str(API_PROCESSES)]
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

"""A run in the middle of it: sessions that are played, what they saw, and when it is over.

Written with the standard library's threads and clock, which gevent takes over in the process that
loads the server (`loadtest.live.process`).
"""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections.abc import Callable, Iterator

from loadtest.live.answer import Answer
from loadtest.live.client import Client
from loadtest.live.profiles import Workload
from loadtest.live.samples import Sample
from loadtest.live.scripts import Script
from loadtest.live.service import Service

RETRY_S = 1.0
"""Before the next session, where the last request was refused without a time, or failed."""
LONGEST_RETRY_S = 30.0


class Run:
    """What all users of one run share."""

    def __init__(
        self,
        service: Service,
        *,
        silence_limit_s: float = 120.0,
        on_sample: Callable[[Sample], object] = lambda sample: None,
    ) -> None:
        """on_sample: called with each request that ended."""
        self.service = service
        self.samples: list[Sample] = []
        """In the order in which they were sent."""
        self.in_flight = 0
        self.start_s = time.perf_counter()
        """Zero of all times."""
        self.stopped_s = -1.0
        """When sending stopped; -1: it has not."""
        self.cut_short = False
        """Whether something stopped it before its time."""
        self.failures: list[str] = []
        """Errors of the load generator itself, not of the server."""
        self._silence_limit_s, self._on_sample = silence_limit_s, on_sample
        self._ending = threading.Event()

    def begin(self) -> None:
        """Starts the clock anew: everything is ready."""
        self.start_s = time.perf_counter()

    @property
    def now_s(self) -> float:
        return time.perf_counter() - self.start_s

    @property
    def ending(self) -> bool:
        """Whether nothing more is to be sent."""
        return self._ending.is_set()

    def stop(self, *, cut_short: bool = False) -> None:
        """Sends nothing more, and wakes up who waits to; what is in flight goes on."""
        if not self.ending:
            self.stopped_s, self.cut_short = self.now_s, cut_short
            self._ending.set()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """What fails inside is no server's fault: it is kept and stops the run, and the block ends.

        The traceback of the first goes to stderr.
        """
        try:
            yield
        except Exception as error:
            if not self.failures:
                traceback.print_exception(error)
            self.failures.append(f"{type(error).__name__}: {error}")
            self.stop(cut_short=True)

    def wait(self, seconds: float) -> bool:
        """Waits; returns whether the run goes on."""
        return not self._ending.wait(seconds) if seconds > 0 else not self.ending

    def client(self) -> Client:
        """Returns a new user's client."""
        return self.service.client(self._silence_limit_s)

    def play(
        self, workload: Workload, script: Script, client: Client, *, due_s: float | None = None
    ) -> float:
        """Plays a session to its end, or until a request of it is not answered, or the run is over.

        due_s: when its first request should be sent, in an open loop. Returns the seconds that the
        user should wait before the next one: 0 after an answer.
        """
        answer: Answer | None = None
        while True:
            try:
                ask = next(script) if answer is None else script.send(answer)
            except StopIteration:
                return 0.0
            # Who has arrived is served; all others wait, and go when the run is over.
            if due_s is None and not self.wait(ask.pause_s):
                script.close()
                return 0.0
            sample = Sample(workload, self.now_s if due_s is None else due_s, 0.0)
            sample.asked_call = ask.asks_call
            due_s = None
            answer = self._ask(ask.body, sample, client)
            if sample.outcome != "answered":
                script.close()
                return min(sample.retry_after_s or RETRY_S, LONGEST_RETRY_S)

    def _ask(self, body: dict[str, object], sample: Sample, client: Client) -> Answer:
        sample.sent_s = self.now_s
        self.samples.append(sample)
        self.in_flight += 1
        try:
            return client.ask(body, sample, self.start_s)
        finally:
            self.in_flight -= 1
            self._on_sample(sample)

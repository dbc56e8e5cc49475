"""The load process: gevent and locust at work. Import it only where nothing else is to happen.

The standard library was patched before (`loadtest.live.cli`), so sockets, threads and clocks of the
files that this one imports are gevent's.
"""

from __future__ import annotations

import gc
import resource
import signal
import sys
from collections.abc import Callable

import gevent
from locust.runners import LocalRunner
from tqdm import tqdm

from loadtest.live.exchange import Connection, ExchangeError
from loadtest.live.lag import Lag
from loadtest.live.moments import Live
from loadtest.live.plan import Plan, Sessions
from loadtest.live.samples import Sample
from loadtest.live.scrape import Counts, read_counts
from loadtest.live.service import Service
from loadtest.live.session import Run
from loadtest.live.users import Load, LoadEnvironment, user_classes
from loadtest.live.web import WebPage

TICK_S = 1.0
DRAIN_LOOK_S = 0.05
LONGEST_SPAWN_RATE = 100.0
"""Users a second; locust warns of more."""


class Seen:
    """What a run saw."""

    def __init__(self, run: Run, lag: Lag, scrapes: list[Counts], live: Live) -> None:
        self.run, self.lag, self.scrapes, self.live = run, lag, scrapes, live
        self.ended_s = run.now_s


class _Stop:
    """What a signal does: the first ends the sending, the next also the waiting for answers."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.at_once = False

    def __call__(self, *_: object) -> None:
        self.at_once = self._run.ending
        if not self.at_once:
            print("waiting for answers in flight; once more to drop them", file=sys.stderr)
        self._run.stop(cut_short=True)


def load(
    plan: Plan,
    service: Service,
    *,
    web: tuple[str, int] | None = None,
    usd_per_hour: float | None = None,
    on_begin: Callable[[str], object] = lambda address: None,
) -> Seen:
    """Runs a plan against a server and returns what was seen.

    web: host and port of locust's page. on_begin: called with its address. SIGINT or SIGTERM stops
    sending, and so does an error of our own (`Run.failures`); what was seen until then counts.
    """
    scrapes: list[Counts] = []
    lag = Lag()
    live = Live(lag, scrapes, usd_per_hour)
    sessions = Sessions(plan, service)
    environment = LoadEnvironment(host=str(service.address), user_classes=user_classes(sessions))
    runner = environment.create_local_runner()
    run = Run(service, silence_limit_s=plan.silence_limit_s, on_sample=_reports(environment, live))
    environment.load = Load(run, sessions)
    page = WebPage(environment, live, *web) if web is not None else None
    if page is not None:
        on_begin(page.address)
    environment.events.test_stopping.add_listener(lambda **_: run.stop(cut_short=True))
    stop = _Stop(run)
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    _raise_file_limit()
    # The collector would look through everything imported so far, and hold streams up meanwhile.
    gc.collect()
    gc.freeze()
    run.begin()
    beside = [gevent.spawn(_beats, run, lag), gevent.spawn(_ticks, run, live)]
    scraper = service.scraper()
    if scraper is not None:
        beside.append(gevent.spawn(_scrapes, run, scraper, service, scrapes, plan.scrape_s))
    try:
        _run(plan, run, runner)
        run.stop()
        _drain(plan, run, stop)
        if scraper is not None:
            _scrape(run, Connection(scraper.address), service, scrapes)
    finally:
        seen = Seen(run, lag, scrapes, live)
        lag.stop()
        runner.quit()
        environment.load.arrived.kill()
        gevent.killall(beside)
        for number, handler in before.items():
            signal.signal(number, handler)
        gc.unfreeze()
    if page is not None:
        page.stop()
    return seen


def _run(plan: Plan, run: Run, runner: LocalRunner) -> None:
    users = 1 if plan.open_loop else plan.users
    rate = min(users / plan.ramp_s, LONGEST_SPAWN_RATE) if plan.ramp_s else LONGEST_SPAWN_RATE
    runner.start(users, rate)
    shown = "{desc} {bar} {n:.0f} of {total:.0f} s"
    # On stderr; none where that is no terminal.
    with tqdm(total=plan.duration_s, bar_format=shown, disable=None) as bar:
        while run.now_s < plan.duration_s and run.wait(min(TICK_S, plan.duration_s - run.now_s)):
            bar.update(min(run.now_s, plan.duration_s) - bar.n)
            bar.set_description_str(f"{len(run.samples)} sent, {run.in_flight} in flight")


def _drain(plan: Plan, run: Run, stop: _Stop) -> None:
    limit_s = run.now_s + plan.drain_s
    while run.in_flight and run.now_s < limit_s and not stop.at_once:
        gevent.sleep(DRAIN_LOOK_S)


def _raise_file_limit() -> None:
    """Lets this process open as many sockets as it may: an open loop has no other limit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _beats(run: Run, lag: Lag) -> None:
    with run.watched():
        lag.run(run.start_s)


def _ticks(run: Run, live: Live) -> None:
    with run.watched():
        while True:
            gevent.sleep(TICK_S)
            live.tick(run)


def _scrapes(
    run: Run, connection: Connection, service: Service, scrapes: list[Counts], every_s: float
) -> None:
    with run.watched():
        while True:
            _scrape(run, connection, service, scrapes)
            gevent.sleep(every_s)


def _scrape(run: Run, connection: Connection, service: Service, scrapes: list[Counts]) -> None:
    """A scrape that fails leaves a gap, which the figures bridge."""
    try:
        response = connection.request("GET", "", service.headers)
        body = response.read()
    except ExchangeError:
        return
    counts = read_counts(body, run.now_s) if response.status == 200 else None
    if counts is not None:
        scrapes.append(counts)


def _reports(environment: LoadEnvironment, live: Live) -> Callable[[Sample], None]:
    """Tells locust's own tables of each request, in milliseconds, rounded as locust does it."""

    def report(sample: Sample) -> None:
        live.ended(sample)
        if sample.end_s < 0:
            return
        failure = None if sample.outcome == "answered" else RuntimeError(sample.error)
        environment.events.request.fire(
            request_type="whole answer",
            name=sample.workload,
            response_time=1000 * sample.end_to_end_s,
            response_length=sample.output_tokens,
            exception=failure,
            context={},
        )
        if failure is None and sample.first_s >= 0:
            environment.events.request.fire(
                request_type="first token",
                name=sample.workload,
                response_time=1000 * sample.first_token_s,
                response_length=0,
                exception=None,
                context={},
            )

    return report

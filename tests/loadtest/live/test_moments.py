"""The running figures, second by second."""

from __future__ import annotations

import pytest

from loadtest.live.lag import Lag
from loadtest.live.moments import Live, rows
from loadtest.live.samples import Sample
from loadtest.live.scrape import Counts
from loadtest.live.session import Run
from tests.loadtest.live.test_figures import SAMPLES, answered
from tests.loadtest.live.test_plan import SERVICE
from tests.loadtest.live.test_scrape import counts


class Still(Run):
    """A run whose clock a test turns."""

    at_s = 0.0

    @property
    def now_s(self) -> float:
        return self.at_s


@pytest.fixture
def run() -> Still:
    return Still(SERVICE)


def test_nothing_is_known_at_first(run: Still) -> None:
    moment = Live(Lag(), [], None).tick(run)
    assert moment.first_token_p50_s is None and moment.usd_per_million_tokens is None
    assert moment.requests_per_s == 0 and moment.lag_s == 0


def test_only_the_last_seconds_are_shown(run: Still) -> None:
    scrapes: list[Counts] = []
    live = Live(Lag(), scrapes, None)
    for sent_s in (1.0, 20.0, 21.0):
        live.ended(answered(sent_s, 0.5, 0.1, 11, 21))
    live.ended(Sample("chat", 22.0, 22.0, "refused", 429, end_s=22.0))
    live.ended(Sample("chat", 22.0, 22.0))
    scrapes += [counts(0.0, 0.0), counts(25.0, 50.0)]
    run.at_s, run.in_flight = 25.0, 3
    moment = live.tick(run)
    assert moment.in_flight == 3 and moment.requests_per_s == pytest.approx(0.2)
    assert moment.failed_per_s == pytest.approx(0.1)
    assert moment.output_tokens_per_s == pytest.approx(4.2)
    assert moment.first_token_p50_s == pytest.approx(0.5)
    assert moment.time_per_output_token_p50_s == pytest.approx(1.0 / 20)
    # 2 USD an hour, ten tokens a GPU-second.
    assert moment.usd_per_million_tokens == pytest.approx(2 / 3600 / 10 * 1e6)
    run.at_s = 60.0
    assert live.tick(run).requests_per_s == 0 and len(live.moments) == 2


def test_rows_are_exact_and_by_workload() -> None:
    agent, chat = rows(SAMPLES)
    assert (agent.workload, agent.sent, agent.answered) == ("agent", 2, 1)
    assert (chat.workload, chat.sent, chat.answered) == ("chat", 4, 3)
    assert agent.first_token_p50 == pytest.approx(3000) and chat.output_tokens == 22
    assert rows([]) == []

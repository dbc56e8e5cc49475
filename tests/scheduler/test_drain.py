from __future__ import annotations

import pytest

from scheduler.drain import DrainRate


def test_the_drain_rate_is_that_of_steps_with_a_backlog() -> None:
    drain = DrainRate()
    assert drain.tokens_per_s == 0.0
    drain.observe(0, 0, 1.0)
    assert drain.tokens_per_s == 0.0, "an idle step says nothing"
    for _ in range(200):
        drain.observe(1000, 800, 0.5)
    assert drain.tokens_per_s == pytest.approx(400)
    for _ in range(200):
        drain.observe(1000, 950, 0.5)
    assert drain.tokens_per_s == pytest.approx(100), "old steps are forgotten"
    for _ in range(200):
        drain.observe(1000, 1100, 0.5)
    assert drain.tokens_per_s == 0.0, "preemption adds to the backlog"

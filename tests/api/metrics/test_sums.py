"""api.metrics.sums: the counts of several processes, as one server's."""

from __future__ import annotations

import msgspec

from api.metrics import names
from api.metrics.sums import Counted, Share, counted
from api.metrics.values import Values


class Process:
    def __init__(self, sums: Values) -> None:
        self.values = Values()
        self._share = Share(sums)

    def report(self) -> None:
        sent = msgspec.json.encode(counted(self.values))
        self._share.take(msgspec.json.decode(sent, type=Counted))

    def die(self) -> None:
        self._share.leave()
        self.values = Values()


def test_counts_add_up_and_survive_their_process() -> None:
    sums = Values()
    first, second = Process(sums), Process(sums)
    stop = sums.number(names.FINISHED, "stop")
    for process, amount in ((first, 3), (second, 4)):
        process.values.number(names.FINISHED, "stop").add(amount)
        process.report()
    assert stop.value == 7
    first.values.number(names.FINISHED, "stop").add(2)
    first.report()
    first.report()
    assert stop.value == 9, "a report that says nothing new adds nothing"
    first.die()
    assert stop.value == 9
    first.values.number(names.FINISHED, "stop").add(1)
    first.report()
    assert stop.value == 10, "the next one counts from 0"


def test_gauges_end_with_their_process() -> None:
    sums = Values()
    first, second = Process(sums), Process(sums)
    for process, amount in ((first, 3), (second, 4)):
        process.values.number(names.HTTP_IN_FLIGHT).add(amount)
        process.report()
    assert sums.number(names.HTTP_IN_FLIGHT).value == 7
    first.die()
    assert sums.number(names.HTTP_IN_FLIGHT).value == 4
    second.values.number(names.HTTP_IN_FLIGHT).add(-4)
    second.report()
    assert sums.number(names.HTTP_IN_FLIGHT).value == 0


def test_histograms_add_up_bucket_by_bucket() -> None:
    sums, alone = Values(), Values()
    processes = [Process(sums), Process(sums)]
    for place, seconds in enumerate((0.004, 0.3, 7.0, 999.0)):
        processes[place % 2].values.histogram(names.FIRST_TOKEN).observe(seconds, weight=2)
        alone.histogram(names.FIRST_TOKEN).observe(seconds, weight=2)
        for process in processes:
            process.report()
    processes[0].die()
    added, direct = (values.histogram(names.FIRST_TOKEN) for values in (sums, alone))
    assert added.counts == direct.counts
    assert added.sum == direct.sum


def test_series_that_are_nought_are_shown() -> None:
    sums = Values()
    process = Process(sums)
    process.values.number(names.HTTP_REQUESTS, "/v1/models", "5xx")
    process.report()
    assert sums.numbers()[names.HTTP_REQUESTS] == {("/v1/models", "5xx"): 0.0}

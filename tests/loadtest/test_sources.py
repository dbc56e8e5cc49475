from __future__ import annotations

from loadtest.sources import TraceSource
from loadtest.tokens import token_ids
from loadtest.traces import TraceRequest


def common(one: list[int], other: list[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def test_equal_blocks_are_equal_tokens() -> None:
    trace = [
        TraceRequest(0.0, 1100, 7, (10, 11, 12)),
        TraceRequest(4.0, 1500, 0, (10, 11, 13)),
        TraceRequest(4.0, 20, 3),
        TraceRequest(5.0, 20, 3),
    ]
    source = TraceSource(trace, speed=2.0)
    assert source.requests == 4
    arrivals = list(source.begin())
    assert [one.at_s for one in arrivals] == [0.0, 2.0, 2.0, 2.5]
    first, second, third, fourth = (token_ids(one.request.prompt) for one in arrivals)
    assert list(map(len, (first, second, third, fourth))) == [1100, 1500, 20, 20]
    assert common(first, second) == 1024
    assert common(third, fourth) == 0
    assert arrivals[1].request.output_tokens == 1  # a request always gets a token
    assert source.ended(arrivals[0].request, 1.0) == (None, ())
    assert source.refused(arrivals[0].request, 1.0, 1.0) == ()


def test_a_traces_tenants() -> None:
    trace = [TraceRequest(0.0, 20, 3, (), "named"), *[TraceRequest(0.0, 20, 3)] * 3]
    arrivals = list(TraceSource(trace, tenants=2).begin())
    assert [one.request.tenant for one in arrivals] == ["named", "1", "0", "1"]

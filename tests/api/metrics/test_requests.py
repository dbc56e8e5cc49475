"""api.metrics.requests: what turns tell, over a scripted model."""

from __future__ import annotations

import asyncio

import pytest

from api.errors import ApiError
from api.metrics import names
from api.metrics.cost import Costs
from api.metrics.metrics import Metrics
from api.service import ChatService
from cost_model.shape import V32
from engine.client import GenerationDefaults
from tests.api.scripted_engine import MODEL, Scripted, body


@pytest.fixture
def metrics(scripted: Scripted) -> Metrics:
    metrics = Metrics(MODEL)
    scripted.service = ChatService(
        scripted.engine,  # type: ignore[arg-type]
        scripted.encoder,
        (MODEL,),
        GenerationDefaults(),
        metrics=metrics,
    )
    return metrics


def finished(metrics: Metrics) -> dict[str, float]:
    """The reasons seen, with their counts."""
    series = metrics.values.numbers()[names.FINISHED]
    return {reason: count for (reason,), count in series.items() if count}


def observations(metrics: Metrics, metric: names.Metric) -> tuple[int, float]:
    histogram = metrics.values.histograms()[metric][()]
    return histogram.total, histogram.sum


def test_an_answer(scripted: Scripted, metrics: Metrics) -> None:
    answer = asyncio.run(scripted.complete())
    usage = answer["usage"]
    assert finished(metrics) == {"stop": 1}
    assert observations(metrics, names.PROMPT_SIZE) == (1, usage["prompt_tokens"])
    assert observations(metrics, names.OUTPUT_SIZE) == (1, usage["completion_tokens"])
    first, first_s = observations(metrics, names.FIRST_TOKEN)
    ends, ends_s = observations(metrics, names.REQUEST_SECONDS)
    assert first == ends == 1 and 0 < first_s <= ends_s
    per_token, per_token_s = observations(metrics, names.PER_TOKEN)
    assert per_token == 1
    assert per_token_s == pytest.approx((ends_s - first_s) / (usage["completion_tokens"] - 1))


def test_choices_and_their_ends(scripted: Scripted, metrics: Metrics) -> None:
    scripted.ends = False
    asyncio.run(scripted.stream(n=2))
    assert finished(metrics) == {"length": 2}
    assert observations(metrics, names.REQUEST_SECONDS)[0] == 1
    assert observations(metrics, names.OUTPUT_SIZE)[0] == 2


def test_a_client_that_leaves(scripted: Scripted, metrics: Metrics) -> None:
    async def leave() -> None:
        async with await scripted.service.start(body(stream=True)) as turn:
            async for _ in turn.pieces():
                break

    asyncio.run(leave())
    assert finished(metrics) == {"abort": 1}
    assert observations(metrics, names.FIRST_TOKEN)[0] == 1


def test_an_engine_that_dies(scripted: Scripted, metrics: Metrics) -> None:
    async def die() -> None:
        async with await scripted.service.start(body()) as turn:
            scripted.engine.death = "killed"
            await turn.completion()

    with pytest.raises(ApiError, match="killed"):
        asyncio.run(die())
    assert finished(metrics) == {"error": 1}
    assert observations(metrics, names.FIRST_TOKEN)[0] == 0
    assert observations(metrics, names.PER_TOKEN)[0] == 0


def test_usage_tells_the_cost_only_when_it_is_asked_to(
    scripted: Scripted, metrics: Metrics
) -> None:
    assert "cost" not in asyncio.run(scripted.complete())["usage"]
    costs = Costs.of(V32, "h800", None, 4096)
    metrics.requests.costs = costs
    usage = asyncio.run(scripted.complete())["usage"]
    expected = costs.request([(usage["prompt_tokens"], 0, [usage["completion_tokens"]])])
    assert usage["cost"]["usd"] == pytest.approx(expected.usd) and expected.usd > 0
    chunks = asyncio.run(scripted.stream(stream_options={"include_usage": True}))
    assert chunks[-1]["usage"]["cost"] == usage["cost"]


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (429, "queue_full", "queue_full"),
        (503, "deadline_unreachable", "deadline_unreachable"),
        (400, "context_length_exceeded", "context_length_exceeded"),
        (400, "invalid_value", "invalid_request"),
        (422, "unsupported_parameter", "invalid_request"),
        (418, "teapot", "other"),
        (500, None, "other"),
    ],
)
def test_refusals_by_reason(status: int, code: str | None, reason: str) -> None:
    metrics = Metrics(MODEL)
    metrics.requests.refused(ApiError(status, "No.", code=code))
    counted = metrics.values.numbers()[names.REFUSALS]
    assert {labels: count for labels, count in counted.items() if count} == {(reason,): 1}
    assert {labels[0] for labels in counted} == set(names.REFUSAL_REASONS)

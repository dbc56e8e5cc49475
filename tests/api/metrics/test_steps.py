"""api.metrics.steps: messages of the engine, added up."""

from __future__ import annotations

import msgspec
import pytest

from api.metrics import names
from api.metrics.cost import Costs
from api.metrics.steps import StepCounts
from api.metrics.values import Values
from cost_model.shape import V32
from engine.messages import Steps, StepStats
from scheduler.plan import Form

MQA: Form = "mqa"
DECODE = StepStats(
    seconds=0.02,
    predicted_s=0.025,
    overhead_s=0.001,
    decode_rows=3,
    decode_context_tokens=3000,
    decode_selected_tokens=2500,
    decode_scored_tokens=0,
    prefills=[],
    pre_warmed_tokens=0,
    first_tokens=0,
    gaps=[(0.021, 2), (0.5, 1)],
    waits_s=[],
    prompts=[],
)
MIXED = msgspec.structs.replace(
    DECODE,
    seconds=0.08,
    predicted_s=0.0,
    prefills=[(64, 100, MQA), (0, 28, MQA)],
    pre_warmed_tokens=28,
    first_tokens=1,
    waits_s=[0.003],
    prompts=[(164, 64)],
)


@pytest.fixture
def values() -> Values:
    values = Values()
    counts = StepCounts(values, Costs.of(V32, "h800", None, 4096))
    counts.take(Steps([DECODE, MIXED]))
    counts.take(Steps([DECODE]))
    return values


def number(values: Values, metric: names.Metric, *labels: str) -> float:
    return values.numbers()[metric][labels]


def test_tokens(values: Values) -> None:
    assert number(values, names.TOKENS, "decode", "computed") == 9
    assert number(values, names.TOKENS, "prefill", "computed") == 100
    assert number(values, names.TOKENS, "prefill", "pre_warmed") == 28
    assert number(values, names.TOKENS, "prefill", "cached") == 64
    assert number(values, names.CONTEXT_TOKENS, "decode") == 9000
    assert number(values, names.SELECTED_TOKENS, "decode") == 7500
    assert number(values, names.CONTEXT_TOKENS, "prefill") == sum(range(65, 165)) + sum(range(29))
    assert number(values, names.FIRST_TOKENS) == 1


def test_a_step_is_observed_once_a_gap_once_per_token(values: Values) -> None:
    histograms = values.histograms()
    steps = histograms[names.STEP_SECONDS]
    assert (steps["decode",].total, steps["prefill",].total) == (2, 1)
    assert steps["decode",].sum == pytest.approx(0.04)
    gaps = histograms[names.INTER_TOKEN][()]
    assert gaps.total == 9 and gaps.sum == pytest.approx(3 * (2 * 0.021 + 0.5))
    within = dict(gaps.cumulative())
    assert (within["0.02"], within["0.022"], within["0.5"]) == (0, 6, 9)
    assert histograms[names.QUEUE_SECONDS][()].total == 1
    assert histograms[names.STEP_SIZE][()].sum == 3 + 131 + 3


def test_predictions_count_where_there_are_any(values: Values) -> None:
    assert number(values, names.STEP_PREDICTED, "decode") == pytest.approx(0.05)
    assert number(values, names.STEP_PREDICTED, "prefill") == 0
    errors = values.histograms()[names.STEP_ERROR]
    assert errors["decode",].total == 2 and errors["decode",].sum == pytest.approx(0.5)
    assert errors["prefill",].total == 0
    assert number(values, names.STEP_OVERHEAD) == pytest.approx(0.003)


def test_a_mixed_step_is_shared_out_as_the_cost_model_expects(values: Values) -> None:
    prefill = number(values, names.GPU_SECONDS, "prefill")
    decode = number(values, names.GPU_SECONDS, "decode")
    assert prefill + decode == pytest.approx(0.02 + 0.08 + 0.02 + 3 * 0.001)
    expected = [number(values, names.EXPECTED_COST, phase) for phase in ("prefill", "decode")]
    # Decode rows were the same in all three steps.
    share = expected[0] / (expected[0] + expected[1] / 3)
    assert prefill == pytest.approx(0.081 * share)


def test_flops_by_component(values: Values) -> None:
    linear, core, indexer = (
        number(values, names.MODEL_FLOPS, component) for component in names.FLOP_COMPONENTS
    )
    assert linear > core > 0 and indexer > 0

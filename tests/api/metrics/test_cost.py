"""api.metrics.cost: sums of steps against the cost model, token by token."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from api.metrics.cost import Costs
from cost_model.costs import StepRow, request_cost, step_seconds
from cost_model.errors import CostError
from cost_model.paper import Paper
from cost_model.roofline import Roofline
from cost_model.shape import V31, V32, ModelShape
from cost_model.work import attention_flops, linear_flops
from engine.messages import StepStats

WINDOW = 1 << 14
TINY = msgspec.structs.replace(V32, name="tiny", hidden_size=256, num_hidden_layers=4)


def costs(shape: ModelShape = V32, machine: str = "h800", price: float | None = None) -> Costs:
    return Costs.of(shape, machine, price, WINDOW)


def step(
    decodes: Sequence[int] = (),
    prefills: Sequence[tuple[int, int, str]] = (),
    top_k: int = 2048,
) -> StepStats:
    """A step with decode rows at these positions, all scored."""
    contexts = [position + 1 for position in decodes]
    return StepStats(
        seconds=0.1,
        predicted_s=0.0,
        overhead_s=0.0,
        decode_rows=len(decodes),
        decode_context_tokens=sum(contexts),
        decode_selected_tokens=sum(min(context, top_k) for context in contexts),
        decode_scored_tokens=sum(context for context in contexts if context > top_k),
        prefills=list(prefills),  # type: ignore[arg-type]
        pre_warmed_tokens=0,
        first_tokens=0,
        gaps=[(0.1, len(decodes))] if decodes else [],
        waits_s=[],
        prompts=[],
    )


def test_the_model_of_the_report_is_priced_by_its_formula_others_by_counted_work() -> None:
    assert isinstance(costs().model, Paper) and costs().usd_per_hour == 2
    renamed = msgspec.structs.replace(V32, name="deepseek-ai/DeepSeek-V3.2")
    assert isinstance(costs(renamed).model, Paper)
    assert isinstance(costs(V31).model, Paper)
    assert isinstance(costs(V32, "h200").model, Roofline)
    assert isinstance(costs(TINY, "cpu").model, Roofline)
    assert costs(TINY, "cpu", 0.5).usd_per_hour == 0.5
    with pytest.raises(CostError, match="price is -1"):
        costs(price=-1.0)


@pytest.mark.parametrize("shape", [V32, V31, TINY])
def test_a_step_costs_what_its_tokens_cost_one_by_one(shape: ModelShape) -> None:
    own = costs(shape)
    decodes, start, count = [5, 2047, 2048, 9000], 6900, 200
    prefill_s, decode_s = own.expected_seconds(
        step(decodes, [(start, count, "mqa")], shape.index_topk or WINDOW)
    )
    rows = [StepRow("decode", position) for position in decodes]
    # The engine's sums count a token into its own context.
    assert decode_s == pytest.approx(step_seconds(own.model, rows), rel=1e-3)
    assert prefill_s == pytest.approx(
        step_seconds(own.model, [StepRow("prefill", start, count)]), rel=1e-9
    )


@pytest.mark.parametrize(("shape", "machine"), [(V32, "h800"), (TINY, "cpu")])
def test_a_request_costs_what_the_cost_model_says(shape: ModelShape, machine: str) -> None:
    own = costs(shape, machine, 3.0)
    cost = own.request([(5000, 1920, [700])])
    expected = request_cost(own.model, 5000, 1920, 700, 3.0)
    assert cost.usd == pytest.approx(expected.usd)
    assert cost.prefill_usd == pytest.approx(expected.prefill_usd)
    assert cost.decode_usd == pytest.approx(expected.decode_usd)
    assert cost.gpu_seconds == pytest.approx(expected.seconds)
    assert cost.usd_per_gpu_hour == 3.0


def test_a_prompt_is_paid_once_for_all_its_choices() -> None:
    own = costs()
    one, two = own.request([(500, 0, [40])]), own.request([(500, 0, [40, 40])])
    assert two.prefill_usd == one.prefill_usd
    assert two.decode_usd == pytest.approx(2 * one.decode_usd)


def test_flops_are_those_of_each_token_in_its_form() -> None:
    own = costs()
    found = own.flops(step([5, 9000], [(100, 50, "mha"), (3000, 20, "masked_mha")]))
    linear = linear_flops(V32)
    each = sum(linear.values()) - linear["head"]
    assert found.linear == 72 * each + 2 * linear["head"]
    tokens = [(6, "mqa", False), (9001, "mqa", True)]
    tokens += [(position + 1, "mha", False) for position in range(100, 150)]
    tokens += [(position + 1, "masked_mha", True) for position in range(3000, 3020)]
    core = indexer = 0.0
    for context, form, scored in tokens:
        flops = attention_flops(V32, form, context)  # type: ignore[arg-type]
        core += float(flops["core_attention"])
        indexer += float(flops["indexer"]) if scored else 0.0
    assert found.core == pytest.approx(core)
    assert found.indexer == pytest.approx(indexer)


def test_what_prefilled_tokens_see_and_attend_to() -> None:
    visible, attended = costs().prefill_context(step([], [(2000, 100, "mqa")]))
    contexts = [position + 1 for position in range(2000, 2100)]
    assert visible == sum(contexts)
    assert attended == sum(min(context, 2048) for context in contexts)


def test_the_curve_stays_inside_the_window() -> None:
    curve = costs().curve
    assert ("decode", "8192") in curve and ("decode", "32768") not in curve
    assert curve["prefill", "0"] == pytest.approx(110.004e-6 * 2 / 3600 * 1e6, rel=1e-3)
    assert curve["decode", "8192"] > curve["decode", "0"]

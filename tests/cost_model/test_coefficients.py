"""A step's seconds from sums, against the preset's seconds summed over its tokens."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_model.coefficients import step_coefficients
from cost_model.costs import StepRow, step_seconds
from cost_model.model import CostModel, total
from cost_model.paper import Paper
from cost_model.predictor import StepCoefficients, StepPredictor, StepSums
from cost_model.roofline import Roofline
from cost_model.shape import V31, V32
from tests.cost_model.models import MODELS, measured

LINEAR = {name: model for name, model in MODELS.items() if model.preset != "measured"}
linear_models = st.sampled_from(sorted(LINEAR)).map(LINEAR.__getitem__)


def predicted(model: CostModel, sums: StepSums) -> float:
    return StepPredictor(step_coefficients(model), model.shape.index_topk).predict(sums)


@settings(max_examples=40)
@given(
    linear_models,
    st.lists(st.integers(0, 200_000), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(8000, 100_000), st.integers(1, 2000)), max_size=2),
)
def test_a_step_by_its_sums_is_the_step_by_its_tokens(
    model: CostModel, decodes: list[int], chunks: list[tuple[int, int]]
) -> None:
    """Every position one later: sums count a token into its own context. Beyond the switch."""
    top_k = model.shape.index_topk
    sums = StepSums()
    rows = []
    for position in decodes:
        sums += StepSums.decode_row(position + 1, top_k)
        rows.append(StepRow("decode", position + 1))
    for start, count in chunks:
        sums += StepSums.prefill_chunk(start, count, top_k)
        rows.append(StepRow("prefill", start + 1, count))
    # The predictor keeps its intercept above 1 ns, so that no step takes no time.
    expected = step_seconds(model, rows)
    assert predicted(model, sums) == pytest.approx(expected, rel=1e-8, abs=2e-9)


@pytest.mark.parametrize("model", [Paper(V32), Roofline(V31)], ids=["paper", "roofline"])
def test_the_position_more_hardly_matters(model: CostModel) -> None:
    sums = StepSums.prefill_chunk(8000, 512, 2048 if model.shape.sparse else 0)
    expected = step_seconds(model, [StepRow("prefill", 8000, 512)])
    assert predicted(model, sums) == pytest.approx(expected, rel=1e-3)


def test_below_the_switch_prefill_is_too_dear_by_a_third_at_most() -> None:
    for model in (Paper(V32), Roofline(V32)):
        found = step_coefficients(model)
        context = np.arange(0, 7000)
        by_sums = (
            found.prefill_token_s
            + found.prefill_context_token_s * context
            + found.prefill_selected_token_s * np.minimum(context, 2048)
        )
        excess = by_sums / total(model.seconds("prefill", context)) - 1
        assert excess.min() > -1e-9
        assert 0.25 < excess.max() < 0.34
        assert int(excess.argmax()) == 2048


def test_the_coefficients_of_the_paper_by_hand() -> None:
    found = step_coefficients(Paper(V32))
    assert msgspec.structs.asdict(found) == pytest.approx(
        {
            "decode_token_s": 171.343e-6,
            "decode_context_token_s": 61 * 16_384 / 692.65e12,
            "decode_selected_token_s": 61 * 278_528 / 395.8e12,
            "prefill_token_s": 110.004e-6,
            "prefill_context_token_s": 61 * 16_384 / 791.6e12,
            "prefill_selected_token_s": 61 * 278_528 / (0.57337 * 989.5e12),
            "row_s": 0.0,
            "step_s": 0.0,
        },
        rel=1e-9,
        abs=1e-20,
    )


def test_without_an_indexer_every_token_is_context_only() -> None:
    found = step_coefficients(Paper(V31))
    assert found.decode_selected_token_s == found.prefill_selected_token_s == 0
    assert found.decode_context_token_s == pytest.approx(61 * 278_528 / 593.7e12)


def test_a_table_is_met_at_both_ends_of_the_window() -> None:
    """One that grows faster than its context, as none of the presets does, keeps its ends."""
    steep = {"indexer": {"context_tokens": [0, 65_536, 131_072], "seconds": [0, 1e-4, 9e-4]}}
    model = measured(decode=steep | {"core_attention": {"context_tokens": [0], "seconds": [0]}})
    found = step_coefficients(model)
    first, last = total(model.seconds("decode", [0, 131_072]))
    assert found.decode_token_s == pytest.approx(first)
    assert found.decode_selected_token_s == 0
    assert found.decode_token_s + 131_072 * found.decode_context_token_s == pytest.approx(last)
    assert found.step_s == model.step_seconds == 0.003


@pytest.mark.parametrize("name", MODELS)
def test_no_coefficient_is_negative(name: str) -> None:
    found = step_coefficients(MODELS[name])
    assert all(getattr(found, field) >= 0 for field in StepCoefficients.__struct_fields__)

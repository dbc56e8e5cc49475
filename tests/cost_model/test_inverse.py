"""Questions asked backwards, against the closed form or against looking at every position."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_model.costs import usd_per_million
from cost_model.errors import CostError
from cost_model.inverse import break_even, form_break_even, knees, position_at_cost
from cost_model.model import Phase, total
from cost_model.paper import Paper
from cost_model.roofline import Roofline
from cost_model.shape import V31, V32
from tests.cost_model.models import MODELS, measured, phases


@settings(max_examples=40)
@given(st.floats(0.01, 0.6), st.floats(0.5, 8))
def test_the_position_of_a_cost_on_a_straight_line(usd: float, price: float) -> None:
    """V3.1's decode: 126.895 us and 61 * 278,528 FLOPs at 593.7 TFLOP/s per position."""
    seconds = usd / price * 3600 * 1e-6
    crossing = (seconds - 126.895e-6) * 593.7e12 / (61 * 278_528)
    expected = max(math.ceil(crossing), 0)
    found = position_at_cost(Paper(V31), "decode", usd, price, reach=20_000)
    if expected >= 20_000:
        assert found is None
    elif abs(crossing - round(crossing)) > 1e-6:  # else rounding decides
        assert found == expected


@settings(max_examples=40)
@given(st.sampled_from(sorted(MODELS)), phases, st.integers(0, 9000))
def test_the_position_of_a_cost_is_the_first_to_reach_it(
    name: str, phase: Phase, position: int
) -> None:
    model = MODELS[name]
    costs = usd_per_million(model, phase, np.arange(9001), 2.0)
    found = position_at_cost(model, phase, float(costs[position]), 2.0, reach=9001)
    assert found is not None and found <= position
    assert costs[found] >= costs[position]
    assert not np.any(costs[:found] >= costs[position])


def test_a_cost_beyond_the_reach_has_no_position() -> None:
    assert position_at_cost(Paper(V32), "decode", 0.25, 2.0) is None
    assert position_at_cost(Paper(V32), "decode", 0.25, 2.0, reach=140_000) == 132_196
    assert position_at_cost(Paper(V32), "decode", 0.0, 2.0) == 0


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_break_even_is_where_the_lines_cross(phase: Phase) -> None:
    for one, other in ((Paper(V32), Paper(V31)), (Roofline(V32), Roofline(V31))):
        position = break_even(one, other, phase)
        assert position is not None
        window = np.arange(131_072)
        cheaper = total(one.seconds(phase, window)) < total(other.seconds(phase, window))
        assert cheaper[position:].all() and not cheaper[:position].any()


def test_no_break_even_within_reach() -> None:
    assert break_even(Paper(V31), Paper(V32), "decode") is None
    assert break_even(Paper(V32), Paper(V31), "decode", reach=4871) is None
    assert break_even(Paper(V32), Paper(V31), "decode", reach=4872) == 4871
    assert break_even(Paper(V32), Paper(V32), "decode") is None


def test_break_even_of_two_forms() -> None:
    assert form_break_even(Paper(V32)) == 6680
    assert form_break_even(Paper(V32), reach=6680) is None
    # Sparse decode against dense: 2048 selected at 40 % and the indexer against all at 60 %.
    per_dense, index = 278_528 / 593.7, 16_384 / 692.65
    crossing = 2048 * 278_528 / 395.8 / (per_dense - index)
    found = form_break_even(Paper(V32), "decode", "mqa", "dense_mqa")
    assert found == math.ceil(crossing)


def test_knees_of_a_table_with_one_form_only() -> None:
    times = {"core_attention.mqa": {"context_tokens": [0, 2048, 9999], "seconds": [0, 6e-5, 6e-5]}}
    assert knees(measured(prefill=times), "prefill") == [2048]
    assert knees(measured(), "prefill") == [6145]  # 8e-5 / 8192 a token against 6e-5


@pytest.mark.parametrize("reach", [0, -5, 1 << 25])
def test_an_absurd_reach_is_refused(reach: int) -> None:
    with pytest.raises(CostError, match=f"reach is {reach}; allowed: 1 to"):
        position_at_cost(Paper(V32), "decode", 1.0, 2.0, reach)

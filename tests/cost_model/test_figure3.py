"""The figure as data, and the comparison with it."""

from __future__ import annotations

import numpy as np
import pytest

from cost_model.costs import usd_per_million
from cost_model.errors import CostError
from cost_model.figure3 import PRICE, curves, match
from cost_model.paper import Paper
from cost_model.roofline import Roofline
from cost_model.shape import V31, V32

VERTICES = {
    "prefill V3.1": {0: 0.052873, 131071: 0.665769},
    "prefill V3.2": {0: 0.061113, 6747: 0.099918, 131071: 0.18712},
    "decode V3.1": {0: 0.070497, 131071: 2.154344},
    "decode V3.2": {0: 0.095191, 2105: 0.145719, 104046: 0.227435, 131071: 0.249099},
}


def test_the_four_lines() -> None:
    assert {name: dict(curve.vertices) for name, curve in curves().items()} == VERTICES
    assert [(curve.phase, curve.shape) for curve in curves().values()] == [
        ("prefill", V31),
        ("prefill", V32),
        ("decode", V31),
        ("decode", V32),
    ]


@pytest.mark.parametrize("name", VERTICES)
def test_the_drawn_line_is_straight_between_vertices(name: str) -> None:
    curve = curves()[name]
    for (left, low), (right, high) in zip(curve.vertices, curve.vertices[1:], strict=False):
        drawn = curve.drawn([left, left + (right - left) / 4, right])
        assert drawn == pytest.approx([low, low + (high - low) / 4, high])


def test_nothing_is_drawn_beyond_the_end() -> None:
    with pytest.raises(CostError, match="position is 131072; allowed: 0 to 131071"):
        curves()["decode V3.2"].drawn([0, 131_072])
    with pytest.raises(CostError, match="position is -1"):
        curves()["decode V3.2"].drawn(-1)


def test_a_match_says_where_it_is_worst() -> None:
    curve = curves()["decode V3.2"]
    asked = [0, 2048, 60_000, 131_071]
    found = match(Roofline(V32), curve, asked)
    usd = usd_per_million(Roofline(V32), "decode", asked, PRICE)
    error = np.abs(usd / curve.drawn(asked) - 1)
    assert found.positions.tolist() == asked
    np.testing.assert_array_equal(found.usd_per_million_tokens, usd)
    assert found.max_relative_error == error.max()
    assert found.worst_position == asked[int(error.argmax())]


def test_vertices_are_compared_wherever_one_looks() -> None:
    curve = curves()["prefill V3.2"]
    everywhere, here = match(Paper(V32), curve), match(Paper(V32), curve, [3000])
    assert here.max_vertex_error == everywhere.max_vertex_error
    assert here.max_relative_error < everywhere.max_relative_error


def test_no_positions_are_refused() -> None:
    with pytest.raises(CostError, match="positions is empty"):
        match(Paper(V32), curves()["decode V3.2"], [])

"""Preset `paper` against the figure, and the figures that the report and its readers quote."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from cost_model.costs import mean_usd_per_million, span_seconds, usd_per_million
from cost_model.errors import CostError
from cost_model.figure3 import curves, match
from cost_model.inverse import break_even, form_break_even, knees
from cost_model.model import Phase
from cost_model.paper import Paper
from cost_model.shape import V31, V32
from tests.cost_model.models import TINY

POSITIONS = np.arange(131_072, dtype=np.float64)
USD_PER_GPU_SECOND = 2 / 3600 * 1e6
"""Per million tokens."""
SELECTED = np.minimum(POSITIONS, 2048)

# 61 layers; per layer and pair 2 * 128 * (128 + 64 + 128) expanded, 2 * 128 * (576 + 512) absorbed
# and 2 * 64 * 128 for the indexer; over shares of 989.5 (bfloat16) and 1979 (FP8) TFLOP/s.
MHA, MQA, INDEXER = 61 * 81_920, 61 * 278_528, 61 * 16_384
CLOSED_FORM = {
    "prefill V3.1": 95.171e-6 + POSITIONS * MHA / 593.7e12,
    "prefill V3.2": 110.004e-6
    + np.minimum(POSITIONS * MHA / 544.225e12, SELECTED * MQA / 567.3496e12)
    + POSITIONS * INDEXER / 791.6e12,
    "decode V3.1": 126.895e-6 + POSITIONS * MQA / 593.7e12,
    "decode V3.2": 171.343e-6 + SELECTED * MQA / 395.8e12 + POSITIONS * INDEXER / 692.65e12,
}


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_the_preset_is_the_closed_form(name: str) -> None:
    curve = curves()[name]
    usd = usd_per_million(Paper(curve.shape), curve.phase, POSITIONS, 2.0)
    np.testing.assert_allclose(usd, CLOSED_FORM[name] * USD_PER_GPU_SECOND, rtol=1e-6)


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_every_vertex_is_met_and_every_position_is_close(name: str) -> None:
    curve = curves()[name]
    found = match(Paper(curve.shape), curve)
    assert found.max_vertex_error < 1e-4
    assert found.max_relative_error < 0.01
    assert found.positions.size == 131_072


@pytest.mark.parametrize(
    ("name", "corner", "knee"), [("prefill V3.2", 6747, 6680), ("decode V3.2", 2105, 2048)]
)
def test_the_rest_of_the_error_is_the_drawing_of_the_corner(
    name: str, corner: int, knee: int
) -> None:
    """The drawn line leaves out the knee and turns at the next vertex, 60 tokens later."""
    found = match(Paper(V32), curves()[name])
    error = np.abs(found.usd_per_million_tokens / found.drawn - 1)
    assert abs(int(error.argmax()) - knee) <= 1
    assert error[corner:].max() < 1e-5
    assert error[0] < 1e-5


def test_the_lines_of_v31_are_met_everywhere() -> None:
    for name in ("prefill V3.1", "decode V3.1"):
        assert match(Paper(V31), curves()[name]).max_relative_error < 1e-5


def test_the_knees_are_top_k_and_the_switch_of_forms() -> None:
    assert knees(Paper(V32), "decode") == [2048]
    (switch,) = knees(Paper(V32), "prefill")
    assert abs(switch - 6679) <= 15
    assert switch == form_break_even(Paper(V32))
    # Where 2048 selected pairs absorbed take as long as all pairs expanded.
    assert switch == np.ceil(2048 * (278_528 / 81_920) * (0.55 / 0.57337))
    assert knees(Paper(V31), "prefill") == knees(Paper(V31), "decode") == []


@pytest.mark.parametrize(
    ("phase", "position", "ratio"), [("prefill", 10_646, 3.56), ("decode", 4_871, 8.65)]
)
def test_where_and_how_far_v32_is_cheaper(phase: Phase, position: int, ratio: float) -> None:
    assert break_even(Paper(V32), Paper(V31), phase) == position
    old, new = CLOSED_FORM[f"{phase} V3.1"], CLOSED_FORM[f"{phase} V3.2"]
    assert new[position] < old[position] and new[position - 1] >= old[position - 1]
    last = [float(usd_per_million(Paper(shape), phase, 131_071, 2.0)) for shape in (V31, V32)]
    assert last[0] / last[1] == pytest.approx(ratio, abs=0.005)


@pytest.mark.parametrize(
    ("phase", "ratio", "old", "new"),
    [("prefill", 2.56, 0.359, 0.140), ("decode", 5.67, 1.112, 0.196)],
)
def test_the_means_over_the_window(phase: Phase, ratio: float, old: float, new: float) -> None:
    means = [mean_usd_per_million(Paper(shape), phase, 0, 131_072, 2.0) for shape in (V31, V32)]
    assert means == pytest.approx([old, new], abs=0.0006)
    assert means[0] / means[1] == pytest.approx(ratio, abs=0.005)


def decode_seconds(tokens: int) -> float:
    """Decoding `tokens` tokens from position 0, summed by Gauss instead of by numpy."""
    positions = tokens * (tokens - 1) / 2
    selected = 2048 * 2047 / 2 + (tokens - 2048) * 2048
    return tokens * 171.343e-6 + selected * MQA / (0.4 * 989.5e12) + positions * INDEXER / 692.65e12


SPECIALE = {
    "AIME 2025": (16, 23, 1.474),
    "HMMT Feb 2025": (19, 27, 1.459),
    "HMMT Nov 2025": (18, 25, 1.422),
    "IMOAnswerBench": (27, 45, 1.753),
    "LiveCodeBench": (16, 27, 1.753),
    "CodeForces": (42, 77, 2.001),
    "GPQA Diamond": (7, 16, 2.411),
    "HLE": (21, 35, 1.740),
}
"""Thousands of output tokens of V3.2-Thinking and V3.2-Speciale by the report, and our ratio."""


@pytest.mark.parametrize("benchmark", SPECIALE)
def test_what_the_longer_answers_of_speciale_cost(benchmark: str) -> None:
    thinking, speciale, expected = SPECIALE[benchmark]
    counts = (1000 * thinking, 1000 * speciale)
    seconds = [sum(span_seconds(Paper(V32), "decode", 0, count).values()) for count in counts]
    assert seconds == pytest.approx([decode_seconds(count) for count in counts], rel=1e-9)
    assert seconds[1] / seconds[0] == pytest.approx(expected, abs=0.0015)


def test_components_are_those_of_the_form() -> None:
    assert set(Paper(V31).seconds("decode", 5)) == {"fixed", "core_attention"}
    assert set(Paper(V32).seconds("decode", 5)) == {"fixed", "core_attention", "indexer"}
    dense = Paper(V32).seconds("decode", 100_000, "dense_mqa")
    assert set(dense) == {"fixed", "core_attention"}
    assert float(dense["core_attention"]) == pytest.approx(100_000 * MQA / 593.7e12)
    assert Paper(V32).step_seconds == 0 and Paper(V32).preset == "paper"


def test_a_checkpoint_of_the_same_shape_has_them_under_its_own_name() -> None:
    other = Paper(msgspec.structs.replace(V32, name="DeepSeek-V3.2-Speciale"))
    assert other.seconds("decode", 7) == Paper(V32).seconds("decode", 7)


def test_other_models_have_no_constants() -> None:
    with pytest.raises(CostError, match=r"'tiny'; preset paper allows: v3\.1, v3\.2"):
        Paper(TINY)


@pytest.mark.parametrize(
    ("phase", "positions", "form", "message"),
    [
        ("decode", 1, "mha", "form is 'mha'; the paper's decode has: dense_mqa, mqa"),
        ("prefill", 1, "flash", "form is 'flash'; the paper's prefill has: mha, masked_mha, mqa"),
        ("train", 1, None, "phase is 'train'; allowed: prefill, decode"),
        ("decode", -1, None, "position is -1; allowed: 0 and above"),
        ("decode", [0, float("nan")], None, "position is nan"),
        ("decode", [float("inf")], None, "position is inf"),
    ],
)
def test_bad_questions_are_refused(
    phase: Phase, positions: object, form: object, message: str
) -> None:
    with pytest.raises(CostError, match=message):
        Paper(V32).seconds(phase, positions, form)  # type: ignore[arg-type]

"""Preset `measured`: tables of operator times, their gaps, and tables that are none."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cost_model.measured
from cost_model.errors import CostError
from cost_model.machines import MACHINES
from cost_model.measured import Measured, OperatorTimes, Points, load_operator_times
from cost_model.model import PHASES, total
from cost_model.roofline import Roofline, RooflineChoices
from cost_model.shape import V31, V32
from tests.cost_model.models import TINY, measured, table

LEVEL = {"context_tokens": [0], "seconds": [1e-5]}


def load(tmp_path: Path, content: dict[str, Any]) -> Measured:
    file = tmp_path / "times.json"
    file.write_text(json.dumps(content))
    return Measured(load_operator_times(file))


def test_the_example_of_the_documentation_is_a_table(tmp_path: Path) -> None:
    text = cost_model.measured.__doc__ or ""
    start = text.index("    {\n")
    example = textwrap.dedent(text[start : text.index("\n    }\n") + len("\n    }\n")])
    file = tmp_path / "example.json"
    file.write_text(example)
    model = Measured(load_operator_times(file))
    assert model.shape == V32 and model.step_seconds == 0.0004 and model.preset == "measured"
    assert float(model.seconds("decode", 65_536)["indexer"]) == 9.5e-05
    assert float(model.seconds("prefill", 9000)["core_attention"]) == pytest.approx(6e-05)
    assert "decode.core_attention" in model.fallbacks
    assert "prefill.core_attention" not in model.fallbacks


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    content = table()
    assert load(tmp_path, content) == measured()
    again = json.loads(msgspec.json.encode(measured().times))
    assert load(tmp_path, again) == measured()


def test_times_are_straight_lines_through_the_points() -> None:
    points = Points((1000, 2000, 4000), (2e-6, 3e-6, 9e-6))
    asked = np.array([0, 1000, 1500, 2000, 3000, 4000, 6000], dtype=np.float64)
    expected = [2e-6, 2e-6, 2.5e-6, 3e-6, 6e-6, 9e-6, 15e-6]
    np.testing.assert_allclose(points.at(asked), expected, rtol=1e-12)


def test_one_point_is_a_constant_and_a_falling_end_stays_level() -> None:
    asked = np.array([0.0, 5e5])
    assert Points((500,), (3e-6,)).at(asked).tolist() == [3e-6, 3e-6]
    assert Points((0, 10), (3e-6, 2e-6)).at(asked).tolist() == [3e-6, 2e-6]


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 200_000), min_size=1, max_size=8, unique=True).map(sorted),
    st.lists(st.floats(0, 1), min_size=8, max_size=8),
    st.lists(st.integers(0, 10**6), min_size=1, max_size=20),
)
def test_no_time_is_negative_and_every_point_is_met(
    context: list[int], seconds: list[float], asked: list[int]
) -> None:
    points = Points(tuple(context), tuple(seconds[: len(context)]))
    assert np.all(points.at(np.array(asked, dtype=np.float64)) >= 0)
    known = points.at(np.array(context, dtype=np.float64))
    np.testing.assert_allclose(known, points.seconds, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("machine", ["h800", "cpu", "b200"])
@pytest.mark.parametrize("shape", [V31, V32, TINY])
def test_a_table_read_off_the_roofline_is_the_roofline(machine: str, shape: Any) -> None:
    """Lines bend at top-k only, so three points hold a component, each form for itself."""
    roofline = Roofline(shape, MACHINES[machine], RooflineChoices(batch=64))
    context = [0, shape.index_topk or 7, 131_072]
    tables: dict[str, dict[str, Points]] = {}
    for phase in PHASES:
        tables[phase] = {}
        for form in roofline.forms(phase):
            for name, seconds in roofline.seconds(phase, context, form).items():
                full = f"{name}.{form}" if name == "core_attention" else name
                tables[phase][full] = Points(tuple(map(float, context)), tuple(seconds.tolist()))
    fields = msgspec.structs.asdict(shape)
    other = "cpu" if machine == "cpu" else "gb200"  # the same components at other speeds, or none
    model = Measured(OperatorTimes(**(table(model=fields, fallback_machine=other) | tables)))
    assert model.shape == shape and model.fallbacks == ()
    asked = [0, 1, 63, 100, 2047, 2048, 2049, 6000, 7000, 131_071, 200_000]
    for phase in PHASES:
        expected = roofline.seconds(phase, asked)
        found = model.seconds(phase, asked)
        assert found.keys() == expected.keys()
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-9, err_msg=name)


def test_what_is_missing_is_the_roofline_and_is_said() -> None:
    model = measured(batch=64)
    assert model.fallbacks == (
        "prefill.attention_projections",
        "prefill.dense_mlp",
        "prefill.shared_experts",
        "prefill.indexer_projections",
        "prefill.indexer",
        "prefill.top_k",
        "decode.attention_projections",
        "decode.dense_mlp",
        "decode.routed_experts",
        "decode.shared_experts",
        "decode.head",
        "decode.indexer_projections",
        "decode.core_attention",
    )
    roofline = Roofline(V32, MACHINES["h800"], RooflineChoices(batch=64))
    for phase in PHASES:
        found, estimated = model.seconds(phase, [0, 9000]), roofline.seconds(phase, [0, 9000])
        for name in found:
            same = name in estimated and np.array_equal(found[name], estimated[name])
            assert same == (f"{phase}.{name}" in model.fallbacks), name


def test_a_table_without_operators_is_the_roofline_with_an_intercept() -> None:
    model = measured(prefill={}, decode={}, fallback_machine="h200")
    roofline = Roofline(V32, MACHINES["h200"])
    for phase in PHASES:
        np.testing.assert_array_equal(
            total(model.seconds(phase, [0, 5000, 9000])),
            total(roofline.seconds(phase, [0, 5000, 9000])),
        )
    assert model.step_seconds == 0.003


def test_time_that_belongs_to_no_operator_is_added() -> None:
    without = measured(decode={})
    with_it = measured(decode={"communication": LEVEL, "other": LEVEL})
    more = total(with_it.seconds("decode", 50)) - total(without.seconds("decode", 50))
    assert float(more) == pytest.approx(2e-5)
    assert "decode.communication" not in without.fallbacks


def test_the_cheapest_of_the_measured_forms_is_taken() -> None:
    model = measured()
    core = model.seconds("prefill", [2000, 9000])["core_attention"]
    np.testing.assert_allclose(core, [2000 * 8e-5 / 8192, 6e-5])
    assert model.forms("prefill") == ("masked_mha", "mqa")


def test_an_estimated_form_never_competes_with_a_measured_one() -> None:
    dear = {"core_attention.mqa": {"context_tokens": [0], "seconds": [9.0]}}
    model = measured(prefill=dear)
    assert model.forms("prefill") == ("mqa",)
    assert float(model.seconds("prefill", 100)["core_attention"]) == 9.0
    assert "prefill.core_attention" not in model.fallbacks
    with pytest.raises(CostError, match="form is 'masked_mha'; the table's prefill has: mqa"):
        model.seconds("prefill", 100, "masked_mha")


def test_one_time_for_all_forms() -> None:
    model = measured(decode={"core_attention": LEVEL})
    for form in (None, "mqa", "dense_mqa"):
        assert float(model.seconds("decode", 77, form)["core_attention"]) == 1e-5  # type: ignore[arg-type]


def test_a_form_that_selects_nothing_has_no_indexer() -> None:
    model = measured(prefill={"indexer": LEVEL, "core_attention": LEVEL})
    assert "indexer" in model.seconds("prefill", 5)
    assert "indexer" not in model.seconds("prefill", 5, "mha")


MALFORMED: list[tuple[dict[str, Any], str]] = [
    ({"format": "operators"}, "format is 'operators'; allowed: 'winnow operator times'"),
    ({"version": 2}, "version is 2; allowed: 1"),
    ({"version": "1"}, r"Expected `int`, got `str` - at `\$.version`"),
    ({"comment": "x"}, "unknown field `comment`"),
    ({"model": "v4"}, r"model is 'v4'; allowed: v3\.1, v3\.2"),
    ({"model": {"hidden_size": 3}}, "model: Object missing required field"),
    ({"model": {"width": 3}}, "model has 'width'; allowed: name, vocab_size"),
    ({"fallback_machine": "h900"}, "fallback_machine: gpu is 'h900'; allowed: h100"),
    ({"batch": 0}, r"`int` >= 1 - at `\$.batch`"),
    ({"step_seconds": -0.1}, "step_seconds is -0.1; allowed: 0 and above"),
    ({"step_seconds": float("nan")}, "step_seconds is nan"),
    ({"prefill": [1]}, r"prefill is \[1\]; allowed: an object of components"),
    ({"prefill": {"softmax": LEVEL}}, "prefill.softmax is not a component; allowed: attention_pr"),
    ({"decode": {"indexer.mqa": LEVEL}}, "decode.indexer.mqa is not a component"),
    (
        {"decode": {"core_attention.masked_mha": LEVEL}},
        "decode.core_attention.masked_mha has no such form; allowed: mqa, dense_mqa",
    ),
    ({"prefill": {"core_attention.flash": LEVEL}}, "allowed: mha, masked_mha, mqa, dense_mqa"),
    ({"model": "v3.1", "decode": {"indexer": LEVEL}}, "decode.indexer is not a component"),
]


@pytest.mark.parametrize(("changed", "message"), MALFORMED)
def test_malformed_tables_are_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(CostError, match=message) as refused:
        load(tmp_path, table(**changed))
    assert str(refused.value).startswith(f"{tmp_path / 'times.json'}: ")


@pytest.mark.parametrize("field", ["format", "version", "machine", "date", "versions", "model"])
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    content = table()
    del content[field]
    with pytest.raises(CostError, match=f"missing required field `{field}`"):
        load(tmp_path, content)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ({"context_tokens": [], "seconds": []}, "context_tokens is empty; allowed: at least one"),
        ({"context_tokens": [0, 1], "seconds": [1]}, "seconds has length 1; allowed: 2"),
        ({"context_tokens": [0], "seconds": [-1e-6]}, "seconds has -1e-06; allowed: 0 and above"),
        ({"context_tokens": [0], "seconds": [float("nan")]}, "seconds has nan"),
        ({"context_tokens": [0], "seconds": [float("inf")]}, "seconds has inf"),
        ({"context_tokens": [-1], "seconds": [1]}, "context_tokens has -1; allowed"),
        ({"context_tokens": [5, 5], "seconds": [1, 1]}, r"is \[5.0, 5.0\]; allowed: ascending"),
        ({"context_tokens": [9, 5], "seconds": [1, 1]}, "allowed: ascending"),
        ({"context_tokens": [0], "seconds": ["1"]}, r"got `str` - at `\$.seconds\[0\]`"),
        ({"context_tokens": [0]}, "missing required field `seconds`"),
        ({"context_tokens": [0], "seconds": [1], "unit": "ms"}, "unknown field `unit`"),
        (3, "Expected `object`, got `int`"),
    ],
)
def test_malformed_points_are_refused_with_their_place(
    tmp_path: Path, points: Any, message: str
) -> None:
    with pytest.raises(CostError, match=message) as refused:
        load(tmp_path, table(decode={"top_k": LEVEL, "indexer": points}))
    assert str(refused.value).startswith(f"{tmp_path / 'times.json'}: decode.indexer: ")


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    file = tmp_path / "times.json"
    with pytest.raises(CostError, match=r"times\.json: No such file"):
        load_operator_times(file)
    file.write_text("{")
    with pytest.raises(CostError, match=r"times\.json: not JSON"):
        load_operator_times(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(CostError, match=r"times\.json: not JSON"):
        load_operator_times(file)
    file.write_text("[]")
    with pytest.raises(CostError, match=r"times\.json: a JSON object was expected"):
        load_operator_times(file)


def test_bad_questions_are_refused() -> None:
    with pytest.raises(CostError, match="phase is 'x'"):
        measured().seconds("x", 1)  # type: ignore[arg-type]
    with pytest.raises(CostError, match="position is -1"):
        measured().seconds("decode", -1)

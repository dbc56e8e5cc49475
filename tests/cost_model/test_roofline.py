"""Preset `roofline`: close to the figure with nothing fitted, and what each choice is worth."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_model.errors import CostError
from cost_model.figure3 import curves, match
from cost_model.inverse import form_break_even, knees
from cost_model.machines import MACHINES, Machine
from cost_model.model import Phase, total
from cost_model.published import INPUTS
from cost_model.roofline import Roofline, RooflineChoices, all_to_all_seconds
from cost_model.shape import V31, V32, ModelShape
from cost_model.work import Form, attention_flops, read_bytes
from tests.cost_model.models import TINY, phases, positions

H100 = MACHINES["h100"]


def errors(choices: RooflineChoices) -> dict[str, tuple[float, float]]:
    """Curve -> the largest errors below and above the figure, relative."""
    found = {}
    for name, curve in curves().items():
        got = match(Roofline(curve.shape, choices=choices), curve)
        error = got.usd_per_million_tokens / got.drawn - 1
        found[name] = (float(error.min()), float(error.max()))
    return found


@pytest.mark.parametrize("name", curves())
def test_every_position_of_every_curve_is_within_5_percent(name: str) -> None:
    curve = curves()[name]
    found = match(Roofline(curve.shape), curve)
    assert found.positions.size == 131_072
    assert found.max_relative_error < 0.05
    assert found.max_vertex_error < 0.05


def test_the_knees_come_out_unfitted() -> None:
    assert knees(Roofline(V32), "decode") == [2048]
    # 590 TFLOP/s for absorbed attention undisturbed, 711 for expanded with 24 of 132 SMs lost.
    switch = 2048 * (278_528 / 81_920) * (711 * 108 / 132) / 590
    assert knees(Roofline(V32), "prefill") == [math.ceil(switch)] == [6866]
    assert knees(Roofline(V31), "prefill") == []


def test_the_sources_of_the_inputs_are_named() -> None:
    for name, one in INPUTS.items():
        assert one.value > 0 and one.unit and one.source, name


def test_closed_form_at_128k() -> None:
    """Each curve by hand: microseconds per token, from the published numbers."""
    context, kept = 131_071, 108 / 132
    linear = (61 * 0.323 + 3 * 0.720 + 58 * (0.871 + 0.073)) / kept
    mha = context * 61 * 81_920 / (711e6 * kept)
    mqa = 2048 * 61 * 278_528 / 590e6
    index = context * 61 * (16_384 / 890e6 + 3e-6)
    every_step = 58 * (94 + 28.8) + 3 * 153.6 + 614.4
    dense = context * 61 * 278_528 / 594e6
    sparse = 2048 * 61 * 278_528 / 410e6
    keys = context * 61 * 132 / (0.9 * 3.35e6) / 1.85
    expected = {
        ("prefill", V31): linear + mha,
        ("prefill", V32): linear + 61 * 0.236 + mqa + index,
        ("decode", V31): (61 * 134.3 + every_step) / 128 + dense,
        ("decode", V32): (61 * 211.6 + every_step) / 128 + sparse + keys,
    }
    for (phase, shape), microseconds in expected.items():
        seconds = float(total(Roofline(shape).seconds(phase, context)))
        assert seconds == pytest.approx(microseconds * 1e-6, rel=1e-9), (phase, shape.name)


CHANGES: list[tuple[dict[str, Any], dict[str, tuple[float, float]]]] = [
    # The choice; and of the curves it moves, the largest error that follows, between two bounds.
    ({"sms_lost_to": "everything"}, {"prefill V3.2": (0.14, 0.17)}),
    (
        {"sms_lost_to": "nothing"},
        {"prefill V3.1": (-0.21, -0.18), "prefill V3.2": (-0.20, -0.17)},
    ),
    ({"decode_module": "fp8 cache"}, {"decode V3.2": (0.29, 0.33)}),
    ({"batch": 256}, {"decode V3.1": (-0.37, -0.33), "decode V3.2": (-0.42, -0.38)}),
    ({"batch": 64}, {"decode V3.1": (0.6, 0.8), "decode V3.2": (0.6, 0.8)}),
    ({"tokens_per_read": 1.0}, {"decode V3.2": (0.32, 0.36)}),
    ({"index_dtype": "bf16"}, {"decode V3.2": (0.35, 0.40)}),
]


@pytest.mark.parametrize(("change", "moved"), CHANGES, ids=lambda value: str(next(iter(value))))
def test_what_each_choice_is_worth(
    change: dict[str, Any], moved: dict[str, tuple[float, float]]
) -> None:
    default, changed = errors(RooflineChoices()), errors(RooflineChoices(**change))
    for name, (lowest, highest) in changed.items():
        if name in moved:
            least, most = moved[name]
            assert least < (lowest if least < 0 else highest) < most, name
        else:
            assert changed[name] == default[name], name


def rates_times(machine: Machine, factor: float) -> Machine:
    return msgspec.structs.replace(
        machine,
        bf16_flops=machine.bf16_flops * factor,
        fp8_flops=machine.fp8_flops * factor,
        memory_bandwidth=machine.memory_bandwidth * factor,
    )


@given(
    st.sampled_from(sorted(MACHINES)),
    st.sampled_from([V31, V32, TINY]),
    phases,
    positions,
    st.floats(0.1, 10),
)
def test_a_machine_k_times_as_fast_takes_a_kth(
    name: str, shape: Any, phase: Phase, position: int, factor: float
) -> None:
    machine = MACHINES[name]
    slow = Roofline(shape, machine).seconds(phase, position)
    fast = Roofline(shape, rates_times(machine, factor)).seconds(phase, position)
    for component, seconds in slow.items():
        assert float(fast[component]) * factor == pytest.approx(float(seconds), rel=1e-9)


def test_what_scales_with_which_rate() -> None:
    more_memory = msgspec.structs.replace(H100, name="m", memory_bandwidth=2 * 3.35e12)
    before = Roofline(V32, H100).seconds("decode", 50_000)
    after = Roofline(V32, more_memory).seconds("decode", 50_000)
    assert float(after["indexer"]) == pytest.approx(float(before["indexer"]) / 2)
    assert float(after["core_attention"]) == float(before["core_attention"])
    assert before["routed_experts"] / 2 < after["routed_experts"] < before["routed_experts"]
    more_fp8 = msgspec.structs.replace(H100, name="f", fp8_flops=2 * 1979e12)
    before = Roofline(V32, H100).seconds("prefill", 50_000)
    after = Roofline(V32, more_fp8).seconds("prefill", 50_000)
    assert float(after["routed_experts"]) == pytest.approx(float(before["routed_experts"]) / 2)
    assert float(after["indexer"]) == pytest.approx(float(before["indexer"]) / 2)
    assert float(after["core_attention"]) == float(before["core_attention"])


def test_a_gpu_with_more_bandwidth_decodes_cheaper_at_length() -> None:
    last = {
        name: float(total(Roofline(V32, MACHINES[name]).seconds("decode", 131_071)))
        for name in ("h20", "h800", "h200", "b200")
    }
    assert last["h20"] > last["h800"] > last["h200"] > last["b200"]


def test_the_nvlink_of_the_h800_is_not_in_the_curve() -> None:
    for phase in ("prefill", "decode"):
        one, other = (
            total(Roofline(V32, MACHINES[name]).seconds(phase, [0, 9999]))
            for name in ("h100", "h800")
        )
        np.testing.assert_array_equal(one, other)


@settings(max_examples=30)
@given(st.integers(1, 4096), st.integers(1, 4096))
def test_a_larger_batch_never_costs_more_per_token(one: int, other: int) -> None:
    small, large = sorted([one, other])
    seconds = [
        float(total(Roofline(V32, choices=RooflineChoices(batch=batch)).seconds("decode", 5000)))
        for batch in (small, large)
    ]
    assert seconds[1] <= seconds[0] * (1 + 1e-12)


def test_a_measured_machine_takes_work_over_rate() -> None:
    """The tiny model in prefill: FLOPs by hand, over the rate of the data sheet."""
    machine = MACHINES["cpu"]
    parts = Roofline(TINY, machine).seconds("prefill", 1000, "mqa")
    experts = 2 * 3 * 4 * 3 * 256 * 128
    """FLOPs: three layers, four experts, three matrices."""
    index = 1000 * 4 * 2 * 8 * 128 / machine.bf16_flops
    core = 64 * 4 * 2 * 16 * (128 + 32 + 128) / machine.bf16_flops
    assert float(parts["routed_experts"]) == pytest.approx(experts / machine.bf16_flops)
    assert float(parts["indexer"]) == pytest.approx(index)
    assert float(parts["core_attention"]) == pytest.approx(core)
    assert "head" not in parts and "head" in Roofline(TINY, machine).seconds("decode", 1000)


def test_a_measured_machine_reads_the_weights_once_a_step() -> None:
    machine = MACHINES["cpu"]
    one = Roofline(V32, machine, RooflineChoices(batch=1)).seconds("decode", 0)
    head_bytes = 4 * 129_280 * 7168
    assert float(one["head"]) == pytest.approx(
        max(head_bytes / machine.memory_bandwidth, head_bytes / 2 / machine.bf16_flops)
    )
    expert_bytes = 58 * 8 * 3 * 7168 * 2048 * 4
    assert float(one["routed_experts"]) == pytest.approx(expert_bytes / machine.memory_bandwidth)


def test_a_measured_machine_reads_each_of_its_caches_for_each_decoded_token() -> None:
    """The tiny model's rows in float32: a latent of 128 with 32 rotary, an index key of 128."""
    machine = MACHINES["cpu"]
    parts = Roofline(TINY, machine).seconds("decode", 1000)
    index = 1000 * 4 * max(2 * 8 * 128 / machine.bf16_flops, 4 * 128 / machine.memory_bandwidth)
    core = max(2 * 16 * (128 + 32 + 128) / machine.bf16_flops, 4 * 160 / machine.memory_bandwidth)
    assert float(parts["indexer"]) == pytest.approx(index)
    assert float(parts["core_attention"]) == pytest.approx(64 * 4 * core)


def test_the_form_of_selecting_all_is_expanded_up_to_the_switch() -> None:
    model = Roofline(V32)
    switch = form_break_even(model)
    assert switch is not None
    for position, form in ((switch - 1, "masked_mha"), (switch, "mqa")):
        chosen = model.seconds("prefill", position)
        assert total(chosen) == total(model.seconds("prefill", position, form))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("copies", "bandwidth", "microseconds"), [(8, 50e9, 202), (4, 50e9, 101), (4, 57.5e9, 88)]
)
def test_the_floor_of_the_all_to_all(copies: float, bandwidth: float, microseconds: float) -> None:
    seconds = all_to_all_seconds(V32, copies=copies, bandwidth=bandwidth)
    assert seconds * 1e6 == pytest.approx(microseconds, abs=0.5)
    # 58 layers; one byte and a fourth scale byte per 32 to send, two bytes to bring back
    assert seconds == pytest.approx(58 * copies * 7168 * (1 + 1 / 32 + 2) / bandwidth)


def test_bad_questions_are_refused() -> None:
    with pytest.raises(CostError, match="form is 'mha'; decode allows: mqa, dense_mqa"):
        Roofline(V32).seconds("decode", 1, "mha")
    with pytest.raises(CostError, match="form is 'flash'"):
        Roofline(V32).seconds("prefill", 1, "flash")  # type: ignore[arg-type]
    with pytest.raises(CostError, match="phase is 'sleep'"):
        Roofline(V32).seconds("sleep", 1)  # type: ignore[arg-type]
    with pytest.raises(CostError, match="position is -3"):
        Roofline(V32).seconds("prefill", [5, -3])
    with pytest.raises(CostError, match="allowed: above 0"):
        all_to_all_seconds(V32, copies=0, bandwidth=1)


@pytest.mark.parametrize("machine", [one for one in MACHINES.values() if not one.measured])
@pytest.mark.parametrize("shape", [V31, V32, TINY])
def test_no_decode_component_goes_through_the_roof(machine: Machine, shape: ModelShape) -> None:
    form: Form = "mqa" if shape.sparse else "dense_mqa"
    positions = np.array([100.0, 2048.0, 131072.0])
    parts = Roofline(shape, machine, RooflineChoices(tokens_per_read=1)).seconds(
        "decode", positions
    )
    flops = attention_flops(shape, form, positions)
    read = read_bytes(shape, form, positions)
    for name in ("core_attention", "indexer"):
        if name in parts:
            assert (parts[name] >= 0.999 * flops[name] / machine.fp8_flops).all()
            assert (parts[name] >= 0.999 * read[name] / machine.memory_bandwidth).all()

"""Data sheets, and a user's own as a file."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cost_model.errors import CostError
from cost_model.machines import MACHINES, Machine, machine_named

NAMES = ("h100", "h800", "h200", "h20", "b200", "gb200", "mi300x", "cpu")


def test_the_machines_there_are() -> None:
    assert set(MACHINES) == set(NAMES)
    for name, machine in MACHINES.items():
        assert machine.name == name and machine_named(name) is machine
        assert machine.source
        assert machine.fp8_flops >= machine.bf16_flops
        assert machine.measured == (name == "cpu")


@pytest.mark.parametrize(
    ("name", "bf16_tera", "fp8_tera", "memory_tera", "gigabytes", "nvlink_giga"),
    [
        ("h100", 989.5, 1979, 3.35, 80, 900),
        ("h800", 989.5, 1979, 3.35, 80, 400),
        ("h200", 989.5, 1979, 4.8, 141, 900),
        ("h20", 148, 296, 4.0, 96, 900),
        ("b200", 2250, 4500, 8.0, 180, 1800),
        ("gb200", 2500, 5000, 8.0, 186, 1800),
        ("mi300x", 1307, 2615, 5.3, 192, 896),
    ],
)
def test_the_data_sheets(
    name: str,
    bf16_tera: float,
    fp8_tera: float,
    memory_tera: float,
    gigabytes: float,
    nvlink_giga: float,
) -> None:
    machine = MACHINES[name]
    assert machine.bf16_flops / 1e12 == pytest.approx(bf16_tera)
    assert machine.fp8_flops / 1e12 == pytest.approx(fp8_tera)
    assert machine.memory_bandwidth / 1e12 == pytest.approx(memory_tera)
    assert machine.memory_bytes / 1e9 == pytest.approx(gigabytes)
    assert machine.scale_up_bandwidth / 1e9 == pytest.approx(nvlink_giga)
    assert machine.usd_per_hour == 2.0


def test_the_cpu_says_how_it_was_measured_and_what_its_price_is() -> None:
    source = MACHINES["cpu"].source
    assert "python -m cost_model.measure" in source
    assert "virtual machine" in source and "nominal" in source
    assert 0 < MACHINES["cpu"].usd_per_hour < 1


def test_an_unknown_gpu_is_refused_with_the_known_ones() -> None:
    with pytest.raises(CostError, match="gpu is 'h900'; allowed: h100, h800, h200, h20, b200"):
        machine_named("h900")


def test_a_data_sheet_in_a_file(tmp_path: Path) -> None:
    mine = Machine(
        name="mine",
        bf16_flops=1e12,
        fp8_flops=1e12,
        memory_bandwidth=1e11,
        memory_bytes=1e10,
        measured=True,
        source="a test",
    )
    file = tmp_path / "mine.json"
    file.write_bytes(msgspec.json.encode(mine))
    assert machine_named(str(file)) == mine


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "truncated"),
        ('{"name": "mine"}', "missing required field `bf16_flops`"),
        ('{"name": "mine", "tflops": 3}', "unknown field `tflops`"),
        (
            '{"name": "mine", "bf16_flops": "fast", "fp8_flops": 1, "memory_bandwidth": 1, '
            '"memory_bytes": 1, "source": "here"}',
            r"Expected `float`, got `str` - at `\$.bf16_flops`",
        ),
        (
            '{"name": "mine", "bf16_flops": 0, "fp8_flops": 1, "memory_bandwidth": 1, '
            '"memory_bytes": 1, "source": "here"}',
            "bf16_flops is 0.0; allowed: above 0",
        ),
    ],
)
def test_a_malformed_file_is_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "mine.json"
    file.write_text(content)
    with pytest.raises(CostError, match=message) as refused:
        machine_named(str(file))
    assert str(refused.value).startswith(f"{file}: ")


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(CostError, match=r"nowhere\.json: No such file"):
        machine_named("nowhere.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bf16_flops", 0.0),
        ("fp8_flops", -1.0),
        ("memory_bandwidth", float("nan")),
        ("memory_bytes", float("inf")),
        ("scale_out_bandwidth", -1.0),
        ("usd_per_hour", -0.01),
    ],
)
def test_absurd_rates_are_refused(field: str, value: float) -> None:
    fields = msgspec.structs.asdict(MACHINES["h100"]) | {field: value}
    with pytest.raises(CostError, match=f"{field} is {value}; allowed: "):
        Machine(**fields)

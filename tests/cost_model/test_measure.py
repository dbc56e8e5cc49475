"""Measuring this machine, on sizes too small to mean anything."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from cost_model.machines import NOMINAL_USD_PER_CORE_HOUR, machine_named
from cost_model.measure import core_count, measure
from cost_model.model import total
from cost_model.roofline import Roofline
from tests.cost_model.models import TINY


def test_a_measured_data_sheet_is_a_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = measure(sizes=(32, 64), copy_bytes=1 << 20, repeats=1)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "float32 product 64 x 64" in printed.err and "copy of 1 MiB" in printed.err
    assert machine.name == "cpu" and machine.measured
    assert machine.bf16_flops == machine.fp8_flops > 0
    assert 0 < machine.memory_bandwidth < 1e15
    assert machine.memory_bytes == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine.usd_per_hour == NOMINAL_USD_PER_CORE_HOUR * core_count()
    assert "python -m cost_model.measure" in machine.source and "nominal" in machine.source

    file = tmp_path / "machine.json"
    file.write_bytes(msgspec.json.encode(machine))
    assert machine_named(str(file)) == machine
    assert total(Roofline(TINY, machine).seconds("decode", 5)) > 0

from __future__ import annotations

import json

import msgspec

from benchmarks.report import CpuTime, describe, disturbance, machine, milliseconds, table


def test_a_table_is_markdown_with_numbers_to_the_right() -> None:
    assert table(["name", "ms"], [["a", "1"], ["long name", "10.5"]]) == (
        "| name      |   ms |\n| --------- | ---: |\n| a         |    1 |\n| long name | 10.5 |"
    )


def test_milliseconds_keep_the_digits_that_matter() -> None:
    assert [milliseconds(s) for s in (0.0000123, 0.0099, 0.25)] == ["0.012", "9.900", "250.0"]


def test_the_machine_is_described_with_versions() -> None:
    here = machine(("torch", "huggingface_hub", "not-installed"))
    assert set(here.versions) == {"torch", "huggingface_hub"}
    assert here.cores >= 1 and here.threads >= 1
    assert f"torch {here.versions['torch']}" in describe(here)
    assert json.loads(msgspec.json.encode(here))["versions"] == here.versions


def test_time_that_the_host_took_is_a_share_of_the_run() -> None:
    before, after = CpuTime(1000, 10), CpuTime(1400, 110)
    assert before.stolen_share(after) == 0.25
    assert "25%" in disturbance(0.25)
    now = CpuTime.now()
    assert 0 <= now.stolen <= now.ticks
    assert now.stolen_share(now) == 0

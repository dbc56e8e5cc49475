"""Tables, and operator times that `cost_model` reads back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cost_model.measured import Measured, load_operator_times
from kernels.bench.__main__ import main
from kernels.bench.case import Case, Place, Prepared, Work, difference
from kernels.bench.clock import Ceilings
from kernels.bench.every import every_case
from kernels.bench.report import Line, details, floor_seconds, operator_times, table

CEILINGS = Ceilings(4e12, 800e12, 1500e12, False)
WHO = {"machine": "NVIDIA H200", "date": "2026-11-22", "versions": {"torch": "2.11.0"}}


def never(device: torch.device) -> Prepared:
    raise AssertionError("only the report is tested")


def a_case(place: Place | None = None, work: Work | None = None) -> Case:
    return Case("op", "shape", work or Work(10**12, 10**9, "bf16"), never, 1e-5, place)


def test_the_floor_is_the_longer_of_products_and_bytes() -> None:
    assert floor_seconds(Work(800 * 10**9, 1, "bf16"), CEILINGS) == pytest.approx(1e-3)
    assert floor_seconds(Work(1, 4 * 10**9, "fp8"), CEILINGS) == pytest.approx(1e-3)
    assert floor_seconds(Work(10**18, 4 * 10**9, "none"), CEILINGS) == pytest.approx(1e-3)


def test_a_table_shows_rates_and_what_is_wrong() -> None:
    lines = [
        Line(a_case(), 1e-6, 2.5e-3),
        Line(a_case(), 0.5, None),
        Line(a_case(), None, None, "RuntimeError: no kernel image"),
    ]
    head, rule, good, wrong, failed = table(lines, CEILINGS).splitlines()
    assert head.split("|")[1].strip() == "op" and set(rule) <= {"|", "-", " "}
    cells = [cell.strip() for cell in good.strip("|").split("|")]
    assert cells[2:] == ["2500.0", "400", "400", "bf16", "50%", "1.0e-06", "ok"]
    assert "above 1e-05" in wrong and "2500" not in wrong
    assert "no kernel image" in failed


def test_operator_times_are_read_back(tmp_path: Path) -> None:
    cases = every_case()
    lines = [Line(one, 0.0, 1e-3 * (number + 1)) for number, one in enumerate(cases)]
    content = operator_times(cases, lines, **WHO)
    file = tmp_path / "h200.json"
    file.write_text(json.dumps(content))
    times = load_operator_times(file)
    assert times.machine == "NVIDIA H200" and times.fallback_machine == "h200"
    model = Measured(times)
    assert model.shape.name == "v3.2"
    paged = next(
        line
        for line in lines
        if line.case.op == "paged_indexer_logits"
        and line.case.place is not None
        and line.case.place.context_tokens == 65_536
    )
    assert paged.seconds is not None
    found = model.seconds("decode", 65_536, "mqa")["indexer"]
    assert float(found) == pytest.approx(paged.seconds * 61 / 64)
    assert not {name for name in model.fallbacks if name.startswith("decode.")}


def test_a_component_with_a_wrong_part_is_left_out() -> None:
    here = Place("decode", "dense_mlp", 0, 64, 3)
    cases = [a_case(here), a_case(here), a_case(Place("decode", "router", 0, 64, 58))]
    right = [Line(one, 0.0, 1e-3) for one in cases]
    whole = operator_times(cases, right, **WHO)["decode"]
    assert whole["dense_mlp"]["seconds"] == [pytest.approx(2e-3 * 3 / 64)]
    wrong = [right[0], Line(cases[1], 1.0, None), right[2]]
    assert list(operator_times(cases, wrong, **WHO)["decode"]) == ["router"]
    assert list(operator_times(cases, right[1:], **WHO)["decode"]) == ["router"]


def test_details_have_every_line() -> None:
    content = details([Line(a_case(), 1e-6, 2e-3)], CEILINGS)
    assert content["cases"][0]["seconds"] == 2e-3
    assert json.loads(json.dumps(content))["ceilings"]["fp8_is_assumed"] is False


def test_difference_counts_rounding_and_nan() -> None:
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    assert difference(x, x) == 0.0
    assert 0 < difference(x.bfloat16(), x) < 5e-6
    assert difference(x, -x) == pytest.approx(2.0)
    assert difference(torch.where(x > 2, torch.nan, x), x) == float("inf")
    both = torch.where(x > 2, -torch.inf, x)
    assert difference(both, both) == 0.0


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_an_older_gpu_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    assert main(["--quick"]) == 2
    assert "NVIDIA A100 has compute capability 8.0" in capsys.readouterr().err

"""Whole runs of the benchmark over fake cases on a fake device: what is found is never lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from triton.errors import TritonError

from kernels.bench.__main__ import main
from kernels.bench.case import Case, Prepared, Work
from kernels.bench.clock import Ceilings


class Clock:
    """Every op takes a millisecond."""

    device = torch.device("cpu")

    def __init__(self, device: torch.device, *, runs: int, longest_s: float) -> None:
        assert device.type == "cuda" and runs > 0 and longest_s > 0

    def seconds(self, run: Callable[[], object]) -> float:
        run()
        return 1e-3

    def ceilings(self) -> Ceilings:
        return Ceilings(4e12, 800e12, 1500e12, False)


def works(device: torch.device) -> Prepared:
    return Prepared(lambda: torch.zeros(2, device=device), lambda: 0.0)


def does_not_compile(device: torch.device) -> Prepared:
    raise TritonError("out of resource: shared memory")


def differs(device: torch.device) -> Prepared:
    total = torch.zeros(1, device=device)
    return Prepared(lambda: total.add_(1), lambda: 0.0)


def is_killed(device: torch.device) -> Prepared:
    raise SystemExit(137)


def cases(**prepare: Callable[[torch.device], Prepared]) -> list[Case]:
    work = Work(10**9, 10**9, "bf16")
    return [Case(op, "a shape", work, how, 1e-5) for op, how in prepare.items()]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the benchmark over these cases."""
    monkeypatch.setattr("kernels.bench.__main__.missing", lambda: None)
    monkeypatch.setattr("kernels.bench.clock.Clock", Clock)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)

    def ran(found: list[Case], *arguments: str) -> int:
        monkeypatch.setattr("kernels.bench.every.every_case", lambda: found)
        return main(arguments)

    return ran


def timed(details: Path) -> dict[str, bool]:
    """Which ops have a time."""
    lines = json.loads(details.read_text())["cases"]
    return {line["op"]: line["seconds"] is not None for line in lines}


def test_a_kernel_that_does_not_compile_hides_no_other(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    details, times = tmp_path / "details.json", tmp_path / "times.json"
    found = cases(first=works, wide=does_not_compile, last=works)
    assert run(found, "--details", str(details), "--json", str(times)) == 1
    assert timed(details) == {"first": True, "wide": False, "last": True}
    assert json.loads(times.read_text())["machine"] == "NVIDIA H200"
    assert capsys.readouterr().out.count("TritonError: out of resource: shared memory") == 2


def test_a_device_that_answers_no_more_leaves_what_was_found(
    run: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls = []

    def empty_cache() -> None:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    details = tmp_path / "details.json"
    assert run(cases(first=works, second=works, third=works), "--details", str(details)) == 1
    assert timed(details) == {"first": True, "second": False, "third": False}
    shown = capsys.readouterr().out
    assert "| first" in shown and "illegal memory access" in shown


def test_what_was_found_before_a_kill_is_printed_and_written(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    details, times = tmp_path / "details.json", tmp_path / "times.json"
    with pytest.raises(SystemExit):
        run(cases(first=works, hangs=is_killed), "--details", str(details), "--json", str(times))
    assert timed(details) == {"first": True} and times.exists()
    shown = capsys.readouterr().out
    assert "1/2 first, a shape: 1000.0 us" in shown and shown.endswith("2/2 hangs, a shape: ")


def test_a_kernel_whose_runs_differ_is_wrong_and_not_timed(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    details = tmp_path / "details.json"
    assert run(cases(atomic=differs), "--details", str(details)) == 1
    assert timed(details) == {"atomic": False}
    assert "20 of 20 reruns gave other bits" in capsys.readouterr().out


def test_gluon_runs_by_request_alone(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    found = cases(topk=works, sparse_mla_gluon=works)
    assert run(found) == 0 and "sparse_mla_gluon" not in capsys.readouterr().out
    assert run(found, "--op", "sparse_mla_gluon") == 0
    assert "1/1 sparse_mla_gluon" in capsys.readouterr().out

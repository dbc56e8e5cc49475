from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from kernels.hopper import report
from kernels.hopper.specialisation import Resources

HELD = report.Entry("op", "good", 8, 2, Resources(200, 0, 4096, 1, {"HGMMA": 40, "LDG": 3}), [])
FAILED = report.Entry("op", "bad", 4, 3, None, ["does not compile: out of paper"])


def test_the_table_has_a_line_for_each_entry() -> None:
    lines = report.table([HELD, FAILED]).splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells == [
        "op",
        "good",
        "8",
        "2",
        "200",
        "0",
        "4,096",
        "1",
        *"HGMMA 40|LDG 3|43|held".split("|"),
    ]
    assert "out of paper" in lines[3]


@pytest.mark.parametrize(("entries", "status"), [([HELD], 0), ([HELD, FAILED], 1)])
def test_the_exit_status_says_whether_all_budgets_are_held(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    entries: list[report.Entry],
    status: int,
) -> None:
    def examined(ops: list[str], processes: int) -> Iterator[report.Entry]:
        assert ops == ["op"] and processes == 1
        yield from reversed(entries)

    monkeypatch.setattr(report, "op_names", lambda: ["op"])
    monkeypatch.setattr(report, "specialisations", lambda op: {e.name: e for e in entries})
    monkeypatch.setattr(report, "examine_all", examined)
    assert report.main(["op", "--json", "--processes", "1"]) == status
    found = json.loads(capsys.readouterr().out)["entries"]
    assert [entry["name"] for entry in found] == [entry.name for entry in entries]


def test_an_unknown_op_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        report.main(["no_such_op"])
    assert "unknown op no_such_op; there are" in capsys.readouterr().err


def test_every_module_with_kernels_declares_specialisations() -> None:
    names = report.op_names()
    assert {"sparse_mla", "dense_mla", "split_combine"} <= set(names)
    for name in report.module_names():
        kernels = [
            attribute for attribute in vars(report.module(name)) if attribute.endswith("_kernel")
        ]
        assert name in names or not kernels, f"{name} has kernels but no SPECIALISATIONS"
    for name in names:
        assert report.specialisations(name), f"{name} has no specialisation"

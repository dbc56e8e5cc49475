"""benchmarks.forms: each prompt is prefilled in both forms, and in no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.checkpoint import write_checkpoint
from benchmarks.forms import over_forms
from engine.runner import Runner
from scheduler.plan import StepPlan, StepResult
from tests.checkpoints import tiny_config

TINY = tiny_config(
    num_nextn_predict_layers=0, num_hidden_layers=2, index_topk=16, initializer_range=0.02
)


def test_the_forms_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    execute = Runner.execute

    def noted(runner: Runner, plan: StepPlan) -> StepResult:
        ran.extend(row.form for row in plan.rows)
        return execute(runner, plan)

    monkeypatch.setattr(Runner, "execute", noted)
    found = over_forms(
        write_checkpoint(tmp_path, TINY), [100, 1500], repeats=2, clock="cpu", threads=1
    )
    # Every prefill is done once more, uncounted, before it is measured.
    assert ran[:8] == ["masked_mha", "masked_mha", "mqa", "mqa"] * 2
    assert set(ran) == {"masked_mha", "mqa"}
    assert [one.chosen for one in found] == ["expanded", "absorbed"]
    assert all(one.expanded_s > 0 and one.absorbed_s > 0 for one in found)

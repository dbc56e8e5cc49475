"""api.metrics.process: what the processes that speak HTTP use."""

from __future__ import annotations

from pathlib import Path

import pytest

from api.metrics import names
from api.metrics.process import ProcessUse
from api.metrics.values import Values


def test_memory_and_processor_time_of_this_process() -> None:
    values = Values()
    use = ProcessUse(values)
    use.note()
    resident = values.number(names.API_RESIDENT)
    processor = values.number(names.API_PROCESSOR)
    assert resident.value > 2**20 and processor.value > 0
    before = processor.value
    while processor.value == before:
        use.note()
    assert processor.value > before


def test_a_machine_that_does_not_say_how_much_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.metrics.process.STATM", Path("/nowhere"))
    values = Values()
    ProcessUse(values).note()
    assert values.number(names.API_RESIDENT).value == 0
    assert values.number(names.API_PROCESSOR).value > 0

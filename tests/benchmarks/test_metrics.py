"""`python -m benchmarks.metrics`: that it measures what it says; no figure is looked at."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from benchmarks.checkpoint import write_checkpoint
from benchmarks.metrics import main
from benchmarks.metrics_steps import measure_scrape, measure_steps
from engine.messages import Snapshot, Steps
from tests.checkpoints import tiny_config

TINY = tiny_config(num_nextn_predict_layers=0, num_hidden_layers=2, initializer_range=0.02)
TINY |= {"vocab_size": 3072}  # that of the tokenizer beside it


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), TINY)


def test_every_step_with_metrics_is_reported_and_no_other(folder: Path) -> None:
    rounds, steps, rows = 2, 3, 4
    found, reported = measure_steps(
        folder, rows=rows, context=80, rounds=rounds, steps=steps, clock="wall"
    )
    told = [
        step
        for message in reported.steps
        for step in msgspec.msgpack.decode(message, type=Steps).steps
    ]
    assert len(told) >= rounds * steps
    assert {step.decode_rows for step in told} == {rows}
    # The first step of a round has no token before it.
    assert sum(step.first_tokens for step in told) == rounds * rows
    assert msgspec.msgpack.decode(reported.snapshot, type=Snapshot).running == rows
    assert min(found.on_s, found.off_s, found.engine_s, found.api_s) > 0
    scrape = measure_scrape(folder, reported, 2)
    assert scrape.count == 2 and 0 < scrape.longest_hold_s <= scrape.whole_s * 10


@pytest.mark.check
def test_streams_and_dead_engines_are_measured(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "metrics.json"
    sizes = "--rows 2 --context 80 --rounds 1 --steps 2 --scrapes 1 --phases 1 --kills 1"
    few = ["--tokens", "80", "--threads", "1", "--json", str(file)]
    assert main([*sizes.split(), *few, "--model", str(folder)]) == 0
    assert "| from the death of an engine to the next answer" in capsys.readouterr().out
    live = json.loads(file.read_text())["live"]
    assert 0 < live["gaps"] < 80 and live["scrapes_per_s"] > 0 and live["series"] > 200
    assert len(live["recoveries_s"]) == 1
    assert len(live["alone_s"]) == len(live["scraped_s"]) == 4

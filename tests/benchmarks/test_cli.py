from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.checkpoint import write_checkpoint
from benchmarks.cli import main
from tests.checkpoints import tiny_config

TINY = tiny_config(num_nextn_predict_layers=0, num_hidden_layers=2, initializer_range=0.02)
TINY |= {"vocab_size": 3072}  # that of the tokenizer beside it


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), TINY)


def run(folder: Path, tmp_path: Path, *arguments: str) -> dict[str, list[dict[str, object]]]:
    """The results that the command writes."""
    written = tmp_path / "results.json"
    assert main([*arguments, "--model", str(folder), "--json", str(written)]) == 0
    results: dict[str, list[dict[str, object]]] = json.loads(written.read_text())["results"]
    return results


def test_a_step_is_shown_with_its_operators(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--batch", "2", "--context", "80", "--steps", "3", "--repeats", "1"]
    results = run(folder, tmp_path, "step", *arguments, "--profile", "--batch-invariant")
    (line,) = results["One step"]
    assert (line["batch"], line["context"]) == (2, 80)
    assert line["operators"]
    assert "| 2 x 80" in capsys.readouterr().out


def test_the_context_plot_is_drawn(folder: Path, tmp_path: Path) -> None:
    plot = tmp_path / "context.svg"
    arguments = ["--context", "128", "256", "--steps", "2", "--plot", str(plot)]
    results = run(folder, tmp_path, "context", *arguments)
    lines = results["A decode step over the context"]
    assert [(line["attention"], line["context"]) for line in lines] == [
        (attention, context) for attention in ("sparse", "dense") for context in (128, 256)
    ]
    assert plot.read_text().startswith("<?xml")


def test_clients_are_answered_over_http(folder: Path, tmp_path: Path) -> None:
    arguments = ["--clients", "2", "--requests", "1", "--prompt", "20", "--tokens", "4"]
    results = run(folder, tmp_path, "serve", "--alone", *arguments)
    (line,) = results["Over HTTP"]
    assert (line["who"], line["clients"]) == ("winnow", 2)


@pytest.mark.check
def test_transformers_serve_stands_beside_it(folder: Path, tmp_path: Path) -> None:
    arguments = ["--clients", "2", "--requests", "1", "--prompt", "20", "--tokens", "4"]
    results = run(folder, tmp_path, "serve", *arguments)
    assert [line["who"] for line in results["Over HTTP"]] == ["winnow", "transformers serve"]

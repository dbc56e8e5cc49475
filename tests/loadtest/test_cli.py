from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtest.cli import main
from loadtest.options import parser

LINE = '{"timestamp": %d, "input_length": 700, "output_length": 5, "hash_ids": [0, %d]}\n'
REPLICA = ["--gpu", "h200", "--gpus", "8", "--pages", "2000", "--max-model-len", "8192"]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(LINE % (100 * n, n) for n in range(6)))
    return path


def test_a_trace_as_text(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(trace), *REPLICA]) == 0
    text = capsys.readouterr().out
    assert "8 x h200, v3.2, 2,000 pages" in text
    assert "6, 6 completed" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_trace_as_json_with_a_plot_and_a_recording(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot, recording = tmp_path / "run.png", tmp_path / "run.jsonl.gz"
    more = ["--json", "--plot", str(plot), "--record", str(recording), "--requests", "4"]
    assert main([str(trace), *REPLICA, *more]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["completed"] == 4
    assert found["hit_rate"] == pytest.approx(3 * 512 / 2800)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert main(["--replay", str(recording)]) == 0
    assert "every decision is the same" in capsys.readouterr().out


def test_agents(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--agents", "2", "--duration", "20", "--json", *REPLICA[:4]]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["completed"] == found["requests"] > 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.jsonl"], "none.jsonl: No such file"),
        (["--agents", "2", "--gpu", "h800", "--gpus", "4"], "gpus is 4"),
        (["--agents", "2", "--gpu", "abacus"], "gpu is 'abacus'"),
        (["--agents", "2", "--model", "v9"], "model is 'v9'"),
        (["--replay", "none.gz"], "none.gz: No such file"),
    ],
)
def test_bad_input_is_said_and_gives_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_a_broken_line_is_named(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with trace.open("a") as file:
        file.write("oops\n")
    assert main([str(trace)]) == 2
    assert f"{trace}:7: " in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["a.jsonl", "--agents", "2"], ["--agents", "0"]])
def test_options_that_do_not_go_together(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2


def test_a_recording_that_cannot_be_written(trace: Path, tmp_path: Path) -> None:
    assert main([str(trace), *REPLICA, "--record", str(tmp_path / "no" / "run.gz")]) == 2


def test_a_cache_and_a_trace_may_be_large(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--agents", "1", "--duration", "10", "--gpu", "h200", "--gpus", "8"]
    assert main([*arguments, "--pages", "20000"]) == 0
    assert "20,000 pages" in capsys.readouterr().out
    assert parser().parse_args(["trace.jsonl", "--requests", "12031"]).requests == 12_031

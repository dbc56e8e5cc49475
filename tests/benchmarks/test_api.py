"""`winnow bench api`: that both servers stream what is asked for; no figure is looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.cli import main


def test_streams_are_measured_beside_a_bare_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "api.json"
    sizes = ["--streams", "3", "--tokens", "5", "--idle", "4", "--rounds", "2"]
    assert main(["api", *sizes, "--json", str(file)]) == 0
    assert "| winnow |" in capsys.readouterr().out
    bare, winnow = json.loads(file.read_text())["results"]["Streams"]
    assert (bare["who"], winnow["who"]) == ("bare", "winnow")
    assert bare["tokens"] == winnow["tokens"] == 5
    assert bare["idle_streams"] == winnow["idle_streams"] == 4

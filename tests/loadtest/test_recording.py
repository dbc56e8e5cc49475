from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from loadtest.recording import RecordingError, replay
from loadtest.simulator import Simulator
from tests.loadtest.replicas import few_agents, small


def record(path: Path, until_s: float = 20.0) -> int:
    """Records a short simulation under pressure; returns its requests."""
    observed = Simulator(small(pages=300), few_agents(8, until_s), record=path).run()
    return sum(one.refusal is None for one in observed.flights)


@pytest.mark.parametrize("name", ["run.jsonl", "run.jsonl.gz"])
def test_a_replay_makes_every_decision_again(tmp_path: Path, name: str) -> None:
    requests = record(tmp_path / name)
    found = replay(tmp_path / name)
    assert found.difference is None
    assert found.requests == requests > 10
    assert found.steps > 500


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b'"max_num_batched_tokens":8192', b'"max_num_batched_tokens":256', "step "),
        (b'"prefix_caching":true', b'"prefix_caching":false', "request "),
    ],
)
def test_other_decisions_are_noticed(tmp_path: Path, old: bytes, new: bytes, said: str) -> None:
    path = tmp_path / "run.jsonl"
    record(path)
    text = path.read_bytes()
    assert text.count(old) == 1
    path.write_bytes(text.replace(old, new))
    difference = replay(path).difference
    assert difference is not None and said in difference and " now, " in difference


def test_a_changed_answer_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    record(path, until_s=3.0)
    lines = path.read_bytes().splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if b'"submit"' in line)
    lines[place] = lines[place].replace(b'"answer":0', b'"answer":64')
    path.write_bytes(b"".join(lines))
    found = replay(path)
    assert found.difference == f"{path}:{place + 1}: request 0.1: 0 now, 64 then"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.jsonl", b"", ":1: no recording of version 1"),
        ("other.jsonl", b'{"type":"abort","id":"a"}\n', ":1: no recording"),
        ("broken.jsonl", b"{\n", ":1: "),
        ("plain.jsonl.gz", b"{}\n", "not a gzipped file"),
        ("cut.jsonl.gz", gzip.compress(b"{}" * 1000, mtime=0)[:20], "ended before"),
    ],
)
def test_a_file_that_is_no_recording(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RecordingError) as raised:
        replay(path)
    assert str(path) in str(raised.value)
    assert said.lower() in str(raised.value).lower()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="No such file"):
        replay(tmp_path / "none.jsonl")

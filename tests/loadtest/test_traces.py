from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.traces import BLOCK_TOKENS, TraceError, load_trace

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def mooncake(timestamp: float = 0, prompt: object = 600, output: object = 5, **more: object) -> str:
    line = {
        "timestamp": timestamp,
        "input_length": prompt,
        "output_length": output,
        "hash_ids": [0, 1],
    }
    return json.dumps(line | more) + "\n"


def written(folder: Path, text: str | bytes, name: str = "trace.jsonl") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_mooncake_trace_starts_at_zero_and_keeps_its_blocks(tmp_path: Path) -> None:
    text = mooncake(5000) + "\n" + mooncake(6500, prompt=512, hash_ids=[0], tenant="a")
    first, second = load_trace(written(tmp_path, text))
    assert (first.arrival_s, first.prompt_tokens, first.output_tokens) == (0.0, 600, 5)
    assert first.blocks == (0, 1)
    assert (second.arrival_s, second.blocks, second.tenant) == (1.5, (0,), "a")


def test_an_azure_trace_has_seven_digits_and_no_blocks(tmp_path: Path) -> None:
    rows = "2023-11-16 18:17:03.9799600,374,44\r\n2023-11-16 18:17:04.2299600,396,0\r\n"
    first, second = load_trace(written(tmp_path, HEADER + rows))
    assert (first.arrival_s, first.prompt_tokens, first.output_tokens) == (0.0, 374, 44)
    assert first.blocks == ()
    assert second.arrival_s == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (mooncake() + "{broken\n", 2, "malformed"),
        (mooncake(prompt=-600), 1, "input_length is -600; allowed: 1 to"),
        (mooncake(output=-1), 1, "output_length is -1; allowed: 0 to"),
        (mooncake(output=10**9), 1, "output_length is 1000000000; allowed: 0 to"),
        (mooncake(prompt="many"), 1, "input_length"),
        (mooncake(timestamp=-1), 1, "timestamp is -1; allowed: 0 ms"),
        (mooncake(500) + "\n" + mooncake(400), 3, "0.1 s before the one above"),
        (
            mooncake(hash_ids=[0]),
            1,
            f"1 hash_ids for 600 tokens; allowed: 2, one per {BLOCK_TOKENS}",
        ),
        (mooncake() + "[1]\n", 2, "object"),
        ('{"timestamp": 1}\n', 1, "missing required field"),
        (b'{"timestamp": "\xff"}\n', 1, ""),
        (HEADER + "2023-11-16 18:17:03,374\n", 2, "2 cells; allowed: 3"),
        (HEADER + "2023-11-16 18:17:03,x,1\n", 2, "'x' is no whole number"),
        (HEADER + "2023-11-16 18:17:03,5,-1\n", 2, "GeneratedTokens is -1"),
        (HEADER + "yesterday,5,1\n", 2, "'yesterday' is no time"),
        (HEADER + "2023-11-16 18:17:03,5,1\n2023-11-16 18:17:02,5,1\n", 3, "1 s before"),
        ("a,b\n", 1, "neither a JSON object nor the header"),
        (b"\xff\xfe\n", 1, "not text in UTF-8"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(
    tmp_path: Path, text: str | bytes, line: int, said: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(TraceError) as raised:
        load_trace(path)
    message = str(raised.value)
    assert message.startswith(f"{path}:{line}: ")
    assert said in message


@pytest.mark.parametrize("text", ["", "\n \n", HEADER])
def test_a_trace_without_requests_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(TraceError, match="no requests"):
        load_trace(written(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"none\.jsonl: No such file"):
        load_trace(tmp_path / "none.jsonl")


LINES = st.one_of(
    st.binary(max_size=40),
    st.tuples(st.floats(), st.integers(), st.integers()).map(
        lambda given: mooncake(given[0], given[1], given[2]).encode().strip()
    ),
    st.just(HEADER.strip().encode()),
    st.tuples(st.text(max_size=20), st.integers(), st.integers()).map(
        lambda given: ",".join(map(str, given)).encode("utf-8", "replace")
    ),
)


@given(st.lists(LINES, max_size=6))
def test_any_file_is_a_trace_or_a_trace_error(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    path = written(tmp_path_factory.mktemp("any"), b"\n".join(lines))
    try:
        requests = load_trace(path)
    except TraceError as error:
        assert str(path) in str(error)
    else:
        arrivals = [one.arrival_s for one in requests]
        assert arrivals == sorted(arrivals)
        assert arrivals[0] == 0.0
        assert all(one.prompt_tokens > 0 and one.output_tokens >= 0 for one in requests)

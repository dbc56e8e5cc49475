"""The command line: everything that can be wrong before a run, by its name, with exit status 1."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.live.command import run
from loadtest.live.options import parser
from tests.loadtest.live.chat_server import chat_server

ROOT = Path(__file__).parents[3]
MOONCAKE = '{"timestamp": 0, "input_length": 600, "output_length": 9, "hash_ids": [1, 2]}\n'


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What goes to stderr; nothing may go anywhere else, and no server is asked."""
    try:
        status = run(arguments)
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        status = stop.code
    assert status == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of URL and --serve is needed"),
        (["http://a", "--serve"], "one of URL and --serve is needed"),
        (["http://a", "--users", "3", "--rate", "2"], "give one of them"),
        (["http://a", "--trace", "t", "--users", "3"], "--trace brings its own times"),
        (["http://a", "--rate", "0"], "'0'; allowed: a number above 0"),
        (["http://a", "--ramp", "-1"], "'-1'; allowed: 0 and above"),
        (["http://a", "--users", "0"], "'0'; allowed: 1 to"),
        (["http://a", "--profile", "all"], "invalid choice: 'all'"),
        (["http://a", "--web", "x:y"], "'x:y'; allowed: PORT or HOST:PORT"),
        (["http://a", "--web", "70000"], "PORT up to 65535"),
        (["http://a", "--targets", "none.toml"], "none.toml: No such file"),
        (["http://a", "--trace", "none.jsonl"], "none.jsonl: No such file"),
        (["http://a", "--api-key-file", "none"], "none: No such file"),
        (["http://a", "--report", "no/such/folder.html"], "there is no folder no/such"),
        (["http://a", "--cost-preset", "x"], "preset is 'x'; allowed: paper, roofline"),
        (["http://a", "--cost-gpu", "h800"], "need --cost-preset"),
        (["http://a", "--cost-preset", "paper", "--cost-gpu", "h20"], "no constants for"),
        (["ftp://a"], "'ftp://a'; allowed: http"),
        (["http://127.0.0.1:1"], "no connection to http://127.0.0.1:1"),
        (["http://no-such-host.invalid"], "no host 'no-such-host.invalid'"),
    ],
)
def test_what_is_wrong_is_said_before_the_run(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in said(arguments, capsys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MOONCAKE + "{broken\n", "trace.jsonl:2: "),
        (MOONCAKE + MOONCAKE.replace("600", "1600"), "trace.jsonl:2: 2 hash_ids for 1600 tokens"),
        ("a,b,c\n", "trace.jsonl:1: neither a JSON object nor the header"),
        ("", "trace.jsonl: no requests in it"),
    ],
)
def test_a_broken_trace_is_named_by_its_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(text)
    with chat_server() as server:
        assert message in said([server.url, "--trace", str(trace)], capsys)
        assert server.connections == 0, "the trace is read before the server is asked"


def test_a_trace_that_the_server_cannot_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 5000, "output_length": 9, "hash_ids": [')
    trace.write_text(trace.read_text() + ", ".join(map(str, range(10))) + "]}\n")
    with chat_server() as server:
        message = said([server.url, "--trace", str(trace)], capsys)
    assert "no request of the trace fits into the server's window of 4096 tokens" in message


def test_an_empty_key_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "key"
    file.write_text("\n")
    assert "no key in it" in said(["http://a", "--api-key-file", str(file)], capsys)


def test_help_fits_and_names_every_profile(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100 and "long-context" in text


def test_only_the_load_process_is_patched() -> None:
    """Everything but process, users and web can be imported beside other people's code."""
    code = (
        "import sys, loadtest.live.command, loadtest.live.cli, loadtest.live.page\n"
        "assert not {'gevent', 'locust', 'flask'} & set(sys.modules), 'imported'\n"
        "import socket; assert socket.socket.__module__ == 'socket'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

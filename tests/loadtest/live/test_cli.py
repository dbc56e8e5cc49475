"""The real command: exit statuses, files, signals, the web page; and a live `winnow serve`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.loadtest.live.chat_server import Refusal, chat_server, obedient
from tests.loadtest.live.test_scrape import exposition

ROOT = Path(__file__).parents[3]
SMALL = ("--scale", "0.01", "--pace", "0.01", "--users", "3", "--duration", "1")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "winnow.py", "load", *map(str, arguments)]


def load(*arguments: object) -> tuple[int, dict[str, Any], str]:
    """Runs the command; returns its status, what it printed as JSON, and its messages."""
    done = subprocess.run(
        command(*arguments, "--json"), cwd=ROOT, capture_output=True, text=True, timeout=540
    )
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


def targets(folder: Path, text: str) -> Path:
    file = folder / "targets.toml"
    file.write_text(text)
    return file


class Growing:
    """/metrics whose GPU-seconds grow with every look at them."""

    def __init__(self) -> None:
        self.looks = 0

    def __call__(self) -> bytes:
        self.looks += 1
        return exposition(gpu_seconds=float(self.looks)).replace(b"100\n", b"%d\n" % self.looks)


@pytest.mark.check
def test_targets_kept_in_a_closed_loop_with_every_output(tmp_path: Path) -> None:
    kept = targets(
        tmp_path,
        "[end_to_end]\nmax_s = 100\n[goodput]\nend_to_end_s = 100\nshare = 1\n"
        "[failures]\nshare = 0\n[cost]\nusd_per_million_tokens = 1e9\n",
    )
    report, samples = tmp_path / "report.html", tmp_path / "samples.jsonl"
    with chat_server(metrics=Growing()) as server:
        status, found, said = load(
            *(server.url, "--targets", kept, "--report", report, "--samples", samples, *SMALL)
        )
        bodies = server.bodies
    assert status == 0, said
    figures = found["figures"]
    assert set(figures["workloads"]) >= {"", "chat", "agent"}
    assert figures["lag"]["count"] > 0 and figures["cost"]["gpu_seconds"] > 0
    assert all(check["measured"] is not None for check in found["verdict"]["checks"])
    lines = [msgspec.json.decode(line) for line in samples.read_bytes().splitlines()]
    assert len(lines) == figures["requests_in_all"] == len(bodies) - 2
    assert {line["outcome"] for line in lines} == {"answered"}
    assert "Every target was kept." in report.read_text()


def test_a_target_missed_in_an_open_loop_of_bursts(tmp_path: Path) -> None:
    missed = targets(tmp_path, "[failures]\nshare = 0.1\n[first_token]\np50_s = 100\n")
    seen = [0]

    def half(body: Any) -> list[Any]:
        seen[0] += 1
        if seen[0] > 2 and seen[0] % 2:
            raise Refusal(429, b'{"error": {"code": "queue_full"}}', {"retry-after": "1"})
        return obedient(body)

    with chat_server(half) as server:
        status, found, said = load(
            *(server.url, "--profile", "chat", "--rate", "30", "--arrivals", "gamma", "--cv", "2"),
            *("--targets", missed, "--duration", "1", "--scale", "0.01", "--pace", "0.01"),
        )
    assert status == 2, said
    whole = found["figures"]["workloads"][""]
    assert whole["errors"]["queue_full"] > 0 and found["figures"]["sent_late"]["count"] > 0
    assert found["plan"].endswith("open loop, 30 sessions/s, gamma, CV 2")


@pytest.mark.check
def test_no_answer_is_no_data() -> None:
    seen = [0]

    def dead(body: Any) -> list[Any]:
        seen[0] += 1
        if seen[0] > 2:
            raise Refusal(503, b"{}")
        return obedient(body)

    with chat_server(dead) as server:
        status, found, said = load(server.url, *SMALL)
    assert status == 3, said
    assert found["warnings"] == [
        "No request that was sent in the steady-state window was answered."
    ]


BROKEN = """
import sys
from gevent import monkey

monkey.patch_all()
from loadtest.live import cli
from loadtest.live.{module} import {owner}

whole, calls = {owner}.{name}, []

def broken(*arguments, **fields):
    calls.append(None)
    if len(calls) > 3:
        raise TypeError("a bug of ours")
    return whole(*arguments, **fields)

{owner}.{name} = broken
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.check
@pytest.mark.parametrize(
    ("module", "owner", "name", "loop"),
    [
        ("session", "Run", "play", ("--rate", "30")),
        ("session", "Run", "play", ("--users", "3")),
        ("plan", "Sessions", "next_script", ("--users", "3")),
        ("lag", "Lag", "run", ("--users", "3")),
        ("moments", "Live", "tick", ("--users", "3")),
    ],
)
def test_an_error_of_our_own_is_counted_and_is_the_exit_status(
    module: str, owner: str, name: str, loop: tuple[str, str]
) -> None:
    code = BROKEN.format(module=module, owner=owner, name=name)
    if name in ("run", "tick"):
        code = code.replace("> 3", "> 0")
    with chat_server() as server:
        done = subprocess.run(
            [
                *(sys.executable, "-c", code, server.url, "--profile", "chat", *loop),
                *("--duration", "60", "--scale", "0.01", "--pace", "0.01", "--json"),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=540,
        )
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["failures"] and set(found["failures"]) == {"TypeError: a bug of ours"}
    assert "The load generator itself failed" in found["warnings"][0]
    assert found["verdict"]["status"] == 1 and found["figures"]["run_s"] < 60
    assert "TypeError: a bug of ours" in done.stderr


@pytest.mark.check
def test_a_trace_is_replayed_to_its_end_with_its_prefixes(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [(0, 600, [1, 2]), (200, 600, [1, 3]), (400, 5000, list(range(10))), (600, 512, [1])]
    trace.write_text(
        "".join(
            json.dumps({"timestamp": at, "input_length": n, "output_length": 5, "hash_ids": ids})
            + "\n"
            for at, n, ids in rows
        )
    )
    with chat_server() as server:
        status, found, said = load(
            server.url, "--trace", trace, "--speed", "2", "--extensions", "--price", "3.6"
        )
        bodies = server.bodies[2:]
    assert status == 0, said
    assert "1 of 4 requests of the trace are left out" in said
    prompts = [body["messages"][0]["content"] for body in bodies]
    assert len(prompts) == 3 and all(prompt.startswith(prompts[2]) for prompt in prompts)
    assert all(body["max_tokens"] == 5 and body["ignore_eos"] for body in bodies)
    # A server without cost series: one GPU for the window, at a tenth of a cent a second.
    cost, window = found["figures"]["cost"], found["figures"]["window"]
    assert cost["usd"] == pytest.approx((window["end_s"] - window["begin_s"]) * 1e-3)


def first_line(process: subprocess.Popen[str], part: str) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if part in line:
            return line
    raise AssertionError(f"no line with {part!r}")


@pytest.mark.check
def test_the_web_page_has_our_charts_and_an_interrupt_ends_the_run() -> None:
    with chat_server() as server:
        sent = threading.Event()

        def reply(body: Any) -> list[Any]:
            sent.set()
            return obedient(body)

        with subprocess.Popen(
            command(server.url, *SMALL[:-1], 600, "--web", "0", "--json"),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            url = first_line(process, "web page: ").split()[-1]
            server.reply = reply
            assert sent.wait(60)
            page = httpx.get(url + "/").text
            statistics = httpx.get(url + "/stats/requests").json()
            moments = httpx.get(url + "/winnow/live.json")
            process.send_signal(signal.SIGTERM)
            assert process.stdout is not None
            found = json.loads(process.stdout.read())
            assert process.wait(60) == 0
    assert "templateArgs" in page and 'id="winnow-charts"' in page
    assert "Exact percentiles" in page
    (table,) = statistics["extended_stats"]
    assert table["key"] == "winnow" and {row["workload"] for row in table["data"]}
    assert moments.status_code == 200 and isinstance(moments.json(), list)
    assert found["warnings"][0].startswith("The run was interrupted")
    assert found["figures"]["run_s"] < 500


@pytest.mark.check
def test_a_server_of_ones_own_that_does_not_start() -> None:
    status, _, said = load("--serve", "--max-model-len 0", *SMALL)
    assert status == 1 and "winnow serve stopped with" in said and "max" in said


def test_the_command_is_one_of_winnow_s() -> None:
    done = subprocess.run(
        [sys.executable, "winnow.py", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert "  load " in done.stdout


@pytest.mark.check
@pytest.mark.timeout(600)
def test_a_live_server_under_every_workload(tmp_path: Path) -> None:
    kept = targets(
        tmp_path,
        "[failures]\nshare = 0\n[goodput]\nend_to_end_s = 300\nshare = 1\n"
        "[cost]\nusd_per_million_tokens = 100\ntimes_expected = 10000\n",
    )
    status, found, said = load(
        *("--serve", "--kv-cache-bytes 64MiB", "--targets", kept, "--users", "10"),
        *("--scale", "0.02", "--pace", "0.01", "--duration", "20", "--drain", "300"),
    )
    assert status == 0, (found.get("verdict"), said)
    figures = found["figures"]
    assert set(figures["workloads"]) == {"", "chat", "long-context", "agent", "agent-dropping"}
    whole, cost = figures["workloads"][""], figures["cost"]
    assert whole["calls"] == whole["asked_calls"] > 0
    assert 0 < whole["cached_tokens"] < whole["prompt_tokens"] and whole["reasoning_tokens"] > 0
    assert figures["uncounted"] == 0
    prefill, decode = cost["phases"]
    assert prefill["tokens"] > 0 and decode["tokens"] > 0 and cost["times_expected"] > 0
    # The server's own counters and its clients' usage are about the same tokens, but for those of
    # answers on the edges of the window.
    computed = whole["prompt_tokens"] - whole["cached_tokens"] + whole["output_tokens"]
    assert cost["tokens"] == pytest.approx(computed, rel=0.5)

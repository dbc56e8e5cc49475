"""Targets files: a good one in full, and every bad one by its name."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

import loadtest.live.targets as module
from loadtest.live.targets import CostLimits, Failures, Generator, Goodput, TargetsError
from loadtest.live.targets import load_targets as load

SHIPPED = sorted((Path(__file__).parents[3] / "loadtest").glob("targets*.toml"))


def file(folder: Path, text: str | bytes) -> Path:
    path = folder / "targets.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_every_target(tmp_path: Path) -> None:
    _, _, example = str(module.__doc__).partition("\n\n")
    found = load(file(tmp_path, dedent(example)))
    assert found.latency == {
        "": {"first_token": {"p95_s": 2.0}},
        "agent": {"first_token": {"p95_s": 4.0}},
    }
    assert found.goodput == Goodput(
        first_token_s=2.0,
        time_per_output_token_s=0.1,
        end_to_end_s=60.0,
        share=0.95,
        requests_per_s=1.0,
    )
    assert found.failures == Failures(0.01) and found.generator == Generator(0.01)
    assert found.cost == CostLimits(
        usd_per_million_tokens=0.5,
        usd_per_million_prompt_tokens=0.3,
        usd_per_million_output_tokens=2.0,
        times_expected=2.0,
    )


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_shipped_files_can_be_read(path: Path) -> None:
    assert load(path).generator.lag_p99_s == 0.01


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no target in it; allowed tables: first_token"),
        ("[goodput]\nfirst_token_s = \n", r"\(at line 2"),
        (b"\xff", "not text in UTF-8"),
        ("[ttft]\np95_s = 1\n", "ttft is no target; allowed: first_token, inter_token"),
        ("first_token = 2.0\n", r"first_token is 2.0; allowed: a table, \[first_token\]"),
        ("[first_token]\np42_s = 1\n", "first_token.p42_s is no target; allowed: p50_s"),
        ("[first_token]\np95_s = '1'\n", "first_token.p95_s is '1'; allowed: a number"),
        ("[first_token]\np95_s = true\n", "first_token.p95_s is True; allowed: a number"),
        ("[end_to_end]\np95_s = 0\n", "end_to_end.p95_s is 0; allowed: above 0, finite"),
        ("[end_to_end]\np95_s = nan\n", "end_to_end.p95_s is nan; allowed: above 0, finite"),
        ("[inter_token]\nmax_s = inf\n", "inter_token.max_s is inf; allowed: above 0, finite"),
        ("workloads = 1\n", r"workloads is 1; allowed: a table, \[workloads\]"),
        ("[workloads.chats]\n", "workloads.chats is no workload; allowed: chat, long-context"),
        ("[workloads]\nchat = 1\n", r"workloads.chat is 1; allowed: a table, \[workloads.chat\]"),
        ("[workloads.chat.goodput]\n", "workloads.chat.goodput is no target; allowed: first_token"),
        (
            "[workloads.chat.first_token]\np95_s = -1\n",
            "workloads.chat.first_token.p95_s is -1; allowed: above 0",
        ),
        ("[goodput]\nshare = 1.5\n", "goodput.share is 1.5; allowed: 0 to 1"),
        ("[goodput]\nshare = 0.9\n", "goodput.share says how many .* nothing says what is"),
        ("[goodput]\ntpot_s = 1\n", "goodput.tpot_s is no target; allowed: first_token_s"),
        ("[failures]\nshare = -0.1\n", "failures.share is -0.1; allowed: 0 to 1"),
        ("[cost]\nusd = 1\n", "cost.usd is no target; allowed: usd_per_million_tokens"),
        ("[cost]\ntimes_expected = -2\n", "cost.times_expected is -2; allowed: above 0"),
        ("[generator]\nlag = 1\n", "generator.lag is no target; allowed: lag_p99_s"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str | bytes, said: str) -> None:
    path = file(tmp_path, text)
    with pytest.raises(TargetsError, match=said) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TargetsError, match="No such file"):
        load(tmp_path / "none.toml")
    with pytest.raises(TargetsError, match="Is a directory"):
        load(tmp_path)


@given(st.binary(max_size=60))
def test_no_bytes_crash_it(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    try:
        load(file(tmp_path_factory.mktemp("targets"), data))
    except TargetsError:
        pass

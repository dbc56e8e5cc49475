"""`winnow cost`: every command as text and as JSON, bad input, and the page that documents it."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cost_model import cli
from cost_model.costs import LONGEST_TOKENS
from cost_model.machines import MACHINES
from cost_model.published import INPUTS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cost.md").read_text()
FIGURE = json.loads(files("cost_model").joinpath("figure3.json").read_bytes())["curves"]
LAYERS = 61

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line that must succeed; returns what it printed."""

    def run_it(*arguments: str) -> str:
        assert cli.main(arguments) == 0
        return capsys.readouterr().out

    return run_it


@pytest.fixture
def answer(run: Run) -> Callable[..., Any]:
    """The same with --json, decoded."""
    return lambda *arguments: json.loads(run(*arguments, "--json"))


@pytest.fixture
def times(tmp_path: Path) -> str:
    """The documentation's table of operator times, as a file."""
    (content,) = re.findall(r"```json\n(.*?)```", PAGE, flags=re.DOTALL)
    file = tmp_path / "times.json"
    file.write_text(content)
    return str(file)


def prefill_seconds(position: int) -> float:
    """V3.2 by the paper, written down once more: the cheaper of masked MHA and MQA."""
    index = 2 * 64 * 128 * position / (0.40 * 1979e12)
    masked = 2 * 128 * (128 + 64 + 128) * position / (0.55 * 989.5e12)
    absorbed = 2 * 128 * (512 + 64 + 512) * min(position, 2048) / (0.57337 * 989.5e12)
    return 110.004e-6 + LAYERS * (index + min(masked, absorbed))


def decode_seconds(position: int) -> float:
    index = 2 * 64 * 128 * position / (0.35 * 1979e12)
    core = 2 * 128 * (512 + 64 + 512) * min(position, 2048) / (0.40 * 989.5e12)
    return 171.343e-6 + LAYERS * (index + core)


def test_figure3_gives_each_curve_where_it_is_asked(answer: Callable[..., Any]) -> None:
    positions = [0, 2048, 6680, 131071]
    found = answer("figure3", "--positions", ",".join(map(str, positions)))
    assert list(found) == ["paper", "roofline"]
    for lines in found.values():
        assert lines.keys() == FIGURE.keys()
        for name, line in lines.items():
            assert line["positions"] == positions
            drawn = np.interp(positions, *np.array(FIGURE[name]).T)
            errors = np.abs(np.array(line["usd_per_million_tokens"]) / drawn - 1)
            assert line["max_relative_error"] == pytest.approx(errors.max(), rel=1e-9)
            assert line["worst_position"] == positions[int(errors.argmax())]
    for phase, seconds in (("prefill", prefill_seconds), ("decode", decode_seconds)):
        expected = [seconds(position) * 2 / 3600 * 1e6 for position in positions]
        line = found["paper"][f"{phase} V3.2"]
        assert line["usd_per_million_tokens"] == pytest.approx(expected, rel=1e-9)


def test_figure3_holds_everywhere_by_default(answer: Callable[..., Any]) -> None:
    found = answer("figure3")
    bounds = {"paper": 0.01, "roofline": 0.05}
    for preset, lines in found.items():
        for line in lines.values():
            assert line["max_relative_error"] < bounds[preset]
            assert line["worst_position"] in line["positions"]
    for name, line in found["paper"].items():
        assert line["max_relative_error_of_vertices"] < 1e-4
        assert {position for position, _ in FIGURE[name]} <= set(line["positions"])
    assert found["paper"]["decode V3.2"]["knees"] == [2048]
    (switch,) = found["paper"]["prefill V3.2"]["knees"]
    assert abs(switch - 6679) <= 15


def test_figure3_of_one_preset(answer: Callable[..., Any], times: str) -> None:
    assert list(answer("figure3", "--preset", "roofline")) == ["roofline"]
    found = answer("figure3", "--preset", times, "--positions", "0")
    assert {preset: list(lines) for preset, lines in found.items()} == {
        "measured": ["prefill V3.2", "decode V3.2"]
    }


def test_a_request_is_the_sum_of_its_tokens(answer: Callable[..., Any]) -> None:
    words = "request --prompt 9000 --cached 6500 --output 300 --price 3"
    found = answer(*words.split())
    prefill = sum(map(prefill_seconds, range(6500, 9000)))
    decode = sum(map(decode_seconds, range(9000, 9300)))
    for phase, tokens, seconds in (("prefill", 2500, prefill), ("decode", 300, decode)):
        cost = found[phase]
        assert cost["tokens"] == tokens
        assert cost["gpu_seconds"] == pytest.approx(seconds, rel=1e-9)
        assert cost["usd"] == pytest.approx(seconds * 3 / 3600, rel=1e-9)
        assert cost["usd_per_million_tokens"] == pytest.approx(seconds / 1.2e-3 / tokens, rel=1e-9)
        assert cost["usd_by_component"].keys() == {"fixed", "core_attention", "indexer"}
        assert sum(cost["usd_by_component"].values()) == pytest.approx(cost["usd"])
    assert found["usd"] == pytest.approx((prefill + decode) * 3 / 3600, rel=1e-9)
    assert (found["preset"], found["model"], found["gpu"]) == ("paper", "v3.2", "h800")


def test_a_request_of_nothing_costs_nothing(run: Run, answer: Callable[..., Any]) -> None:
    words = ("request", "--prompt", "0", "--output", "0")
    assert answer(*words)["usd"] == 0
    assert answer(*words)["decode"]["usd_per_million_tokens"] is None
    assert "total" in run(*words)


def test_a_request_says_what_was_estimated(
    run: Run, answer: Callable[..., Any], times: str
) -> None:
    words = ("request", "--preset", times, "--prompt", "10", "--output", "10")
    found = answer(*words)
    assert "prefill.core_attention" in found["estimated"]
    assert "decode.core_attention" not in found["estimated"]
    assert found["gpu"] == "8 x H800 SXM, an example"
    assert "not in the file, so the roofline's: prefill.attention_projections" in run(*words)


def test_every_price_is_linear_and_the_sheets_own_by_default(answer: Callable[..., Any]) -> None:
    words = ("request", "--preset", "roofline", "--prompt", "100", "--output", "10")
    cheap = answer(*words, "--gpu", "cpu")
    assert cheap["usd_per_gpu_hour"] == MACHINES["cpu"].usd_per_hour
    dear = answer(*words, "--gpu", "cpu", "--price", "10")
    assert dear["usd"] == pytest.approx(cheap["usd"] * 10 / cheap["usd_per_gpu_hour"])


def test_a_kept_loop_computes_every_token_once(answer: Callable[..., Any]) -> None:
    words = "trajectory --steps 5 --prompt 1000 --reasoning 70 --call 30 --tool-result 400"
    found = answer(*words.split())
    seconds, position = sum(map(prefill_seconds, range(1000))), 1000
    for step in range(5):
        if step:
            seconds += sum(map(prefill_seconds, range(position, position + 400)))
            position += 400
        seconds += sum(map(decode_seconds, range(position, position + 100)))
        position += 100
    kept = found["policies"]["kept"]
    assert kept["usd"] == pytest.approx(seconds / 1800, rel=1e-9)
    assert kept["computed_tokens"] == 1000 + 4 * 400
    assert kept["output_tokens"] == 500
    assert kept["longest_context_tokens"] == position
    assert found["policies"]["managed"] == kept
    assert found["policies"]["dropped"]["longest_context_tokens"] == position - 4 * 70
    for policy in found["policies"].values():
        assert sum(policy["usd_by_component"].values()) == pytest.approx(policy["usd"])
        assert sum(policy["usd_of_steps"]) == pytest.approx(policy["usd"])


def test_a_full_window_is_said(run: Run, answer: Callable[..., Any]) -> None:
    words = ("trajectory", "--steps", "40")
    found = answer(*words)["policies"]
    assert [found[name]["complete"] for name in found] == [False, False, True]
    assert [found[name]["steps"] for name in found] == [27, 32, 40]
    assert "no, window full" in run(*words)


def test_two_models_side_by_side(answer: Callable[..., Any]) -> None:
    found = answer("compare", "v3.1", "v3.2", "--positions", "0,131071", "--at-cost", "0.2")
    prefill, decode = found["phases"]["prefill"], found["phases"]["decode"]
    assert (prefill["cheaper"], prefill["cheaper_from_position"]) == ("v3.2", 10646)
    assert (decode["cheaper"], decode["cheaper_from_position"]) == ("v3.2", 4871)
    assert prefill["ratio"][1] == pytest.approx(3.56, abs=0.005)
    assert decode["ratio"][1] == pytest.approx(8.65, abs=0.005)
    assert prefill["mean_ratio"] == pytest.approx(2.56, abs=0.005)
    assert decode["mean_ratio"] == pytest.approx(5.67, abs=0.005)
    assert decode["usd_per_million_tokens"][1][1] == pytest.approx(decode_seconds(131071) / 1.8e-3)
    assert prefill["reached_at_position"][1] is None
    at = decode["reached_at_position"][1]
    assert decode_seconds(at - 1) / 1.8e-3 < 0.2 <= decode_seconds(at) / 1.8e-3


def test_the_order_of_the_models_only_turns_the_ratio(answer: Callable[..., Any]) -> None:
    turned = answer("compare", "v3.2", "v3.1", "--preset", "roofline")["phases"]["decode"]
    straight = answer("compare", "v3.1", "v3.2", "--preset", "roofline")["phases"]["decode"]
    assert turned["cheaper"] == straight["cheaper"] == "v3.2"
    assert turned["cheaper_from_position"] == straight["cheaper_from_position"]
    assert turned["mean_ratio"] == pytest.approx(1 / straight["mean_ratio"])


def test_a_model_beside_itself(run: Run, answer: Callable[..., Any]) -> None:
    found = answer("compare", "v3.2", "v3.2")["phases"]["decode"]
    assert found["cheaper"] is None and found["mean_ratio"] == 1
    assert "cheaper at the end: neither" in run("compare", "v3.2", "v3.2")


def test_capacity_fills_the_memory(answer: Callable[..., Any]) -> None:
    words = "capacity --gpu h800 --gpus 16 --context 65536 --price 3"
    found = answer(*words.split())
    page = 64 * found["bytes_per_token"]
    assert found["bytes_per_token"] == 62 * (512 + 16 + 128 + 132)
    used = found["weight_bytes"] + found["reserved_bytes"] + found["cache_bytes"]
    assert found["cache_bytes"] == found["pages"] * page
    assert 80e9 - page < used <= 80e9
    assert found["sequences"] == found["pages"] // 1024
    per_hour = found["tokens_per_second_all_gpus"] * 3600
    assert found["usd_per_million_tokens"] == pytest.approx(16 * 3 / per_hour * 1e6)
    bf16 = answer(*words.split(), "--kv-cache-dtype", "bf16", "--index-dtype", "bf16")
    assert bf16["bytes_per_token"] == 62 * 2 * (576 + 128)


def test_the_shares_come_out_round(run: Run, answer: Callable[..., Any]) -> None:
    found = answer("derivation")
    shares = {(one["curve"], one["component"]): one["share"] for one in found["shares"]}
    exact = {
        ("prefill V3.1", "core_attention.mha"): 0.60,
        ("prefill V3.2", "indexer"): 0.40,
        ("prefill V3.2", "core_attention.mqa"): 0.57337,
        ("decode V3.1", "core_attention.dense_mqa"): 0.60,
        ("decode V3.2", "indexer"): 0.35,
        ("decode V3.2", "core_attention.mqa"): 0.40,
    }
    bound = shares.pop(("prefill V3.2", "core_attention.masked_mha"))
    assert 0.55 < bound < 0.56
    assert shares == pytest.approx(exact, abs=1e-5)
    assert [one["seconds"] for one in found["fixed"]] == pytest.approx(
        [95.171e-6, 110.004e-6, 126.895e-6, 171.343e-6], rel=1e-5
    )
    assert "at most 0.55557" in run("derivation")


def test_inputs_are_all_there_with_their_sources(run: Run, answer: Callable[..., Any]) -> None:
    found = answer("inputs")
    assert found["inputs"].keys() == INPUTS.keys()
    assert all(one["source"] for one in (*found["inputs"].values(), *found["machines"].values()))
    errors = found["largest_relative_error"]
    assert max(map(abs, errors["as chosen"].values())) < 0.05
    # Without sharing reads, decode V3.2 pays 1.85 times for its index keys.
    assert errors["tokens_per_read 1 (no MTP sharing)"]["decode V3.2"] > 0.3
    text = run("inputs")
    assert all(name in text for name in (*INPUTS, *MACHINES, *errors))


def test_published_systems_stand_beside_the_paper(answer: Callable[..., Any]) -> None:
    found = answer("systems")
    usd = [one["usd_per_million_tokens"] for one in found["systems"]]
    assert usd == pytest.approx([0.138, 0.300, 0.085, 0.199], abs=5e-4)
    assert [one["ratio"] for one in found["systems"]] == pytest.approx(
        [1.81, 2.00, 1.48, 1.95], abs=0.01
    )
    assert [one["seconds"] * 1e6 for one in found["all_to_all"]] == pytest.approx(
        [88, 259, 101], abs=0.5
    )


def test_measure_prints_a_data_sheet_that_can_be_used(
    monkeypatch: pytest.MonkeyPatch, run: Run, answer: Callable[..., Any], tmp_path: Path
) -> None:
    # The measuring itself is tested elsewhere, and takes its time.
    monkeypatch.setattr(cli, "measure", lambda: MACHINES["cpu"])
    sheet = tmp_path / "machine.json"
    sheet.write_text(run("measure", "--json"))
    words = ("request", "--preset", "roofline", "--prompt", "10", "--output", "10", "--gpu")
    assert answer(*words, str(sheet)) == answer(*words, "cpu")
    assert "cpu" in run("measure")


TEXT = [
    "figure3",
    "request --prompt 3000 --output 10",
    "request --preset roofline --gpu b200 --prompt 3000 --output 10",
    "trajectory --steps 3",
    "compare v3.1 v3.2",
    "capacity --gpus 16 --context 1000",
    "derivation",
    "inputs",
    "systems",
]


@pytest.mark.parametrize("words", TEXT)
def test_tables_are_readable_at_100_columns(run: Run, words: str) -> None:
    lines = run(*words.split()).splitlines()
    assert max(map(len, lines)) <= 100
    assert not any(line != line.rstrip() for line in lines)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("request --prompt 1 --output 1 --gpu h300", "gpu is 'h300'; allowed: h100"),
        ("request --prompt 1 --output 1 --gpu h200", "gpu is 'h200', which preset 'paper'"),
        ("request --prompt 1 --output 1 --preset gues", "preset is 'gues'; allowed: paper"),
        ("request --prompt 1 --output 1 --model v4", "model is 'v4'; allowed: v3.1, v3.2"),
        ("request --prompt 4 --cached 5 --output 1", "cached is 5; allowed: 0 to prompt = 4"),
        ("request --prompt 1 --output 1 --preset no.json", "no.json: No such file"),
        ("request --prompt 1 --output 1 --plot no/such/a.png", "no/such/a.png: No such file"),
        ("request --prompt 1 --output 1 --preset TIMES --gpu h100", "it was measured on 8 x H800"),
        ("request --prompt 1 --output 1 --preset TIMES --model v3.1", "allows: v3.2, measured"),
        ("figure3 --positions 131072", "position is 131072; allowed: 0 to 131071"),
        ("figure3 --preset paper paper", "preset paper is given twice"),
        ("figure3 --preset guess", "preset is 'guess'; allowed: paper"),
        ("trajectory --steps 5 --window 10", "window is 10; allowed: at least one step"),
        ("compare v3.1 v3.2 --preset TIMES", "compare allows: paper, roofline"),
        ("capacity --gpu h800 --gpus 2 --context 1", "allowed: more GPUs"),
        ("capacity --gpus 16 --context 900000", "context is 900000; allowed: at most"),
        ("capacity --gpus 16 --context 0", "context is 0; allowed: 1"),
    ],
)
def test_what_cannot_be_answered_is_one_line(
    capsys: pytest.CaptureFixture[str], times: str, words: str, said: str
) -> None:
    assert cli.main([times if word == "TIMES" else word for word in words.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("winnow cost: ") and captured.err.count("\n") == 1
    assert said in captured.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "request --prompt -1 --output 1",
            f"argument --prompt: '-1'; allowed: 0 to {LONGEST_TOKENS} tokens",
        ),
        ("request --prompt 1e9 --output 1", "argument --prompt: '1e9'; allowed: 0 to"),
        ("request --prompt 99999999999 --output 1", "argument --prompt: '99999999999'; allowed"),
        ("request --prompt 1", "required: --output"),
        ("request --prompt 1 --output 1 --price -2", "argument --price: '-2'; allowed: 0 and"),
        ("request --prompt 1 --output 1 --price nan", "argument --price: 'nan'; allowed: 0 and"),
        ("request --prompt 1 --output 1 --price two", "argument --price: 'two'; allowed: a numb"),
        ("request --prompt 1 --output 1 --plot a.gif", "allowed: a file ending in .png or .svg"),
        ("figure3 --positions 1,x", "argument --positions: 'x'; allowed: 0 to"),
        ("trajectory --steps 0", "argument --steps: '0'; allowed: 1 to"),
        ("trajectory --steps 1 --discard 0", "argument --discard: '0'; allowed: above 0"),
        ("capacity --gpus 1 --context 1 --dtype fp4", "argument --dtype: invalid choice: 'fp4'"),
        ("estimate", "invalid choice: 'estimate'"),
        ("", "required: command"),
    ],
)
def test_a_bad_option_is_named_with_what_is_allowed(
    capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(words.split())
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_help_shows_commands_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], *([name, "--help"] for name in cli.COMMANDS)):
        with pytest.raises(SystemExit) as stopped:
            cli.main(words)
        assert stopped.value.code == 0
        shown = capsys.readouterr().out
        assert max(map(len, shown.splitlines())) <= 100
        assert shown.startswith("usage: winnow cost")
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in cli.COMMANDS)


def documented() -> Iterator[tuple[str, str]]:
    """(command line, what the page shows of its output) for each of the page's bash blocks."""
    blocks = re.findall(r"```(\w+)\n(.*?)```", PAGE, flags=re.DOTALL)
    for (kind, content), following in itertools.zip_longest(blocks, blocks[1:]):
        if kind == "bash":
            lines = content.strip().splitlines()
            shown = following[1] if following and following[0] == "text" else ""
            for line in lines:
                yield line, shown if line == lines[0] else ""


@pytest.mark.parametrize(("line", "shown"), list(documented()))
def test_the_page_shows_what_its_commands_print(
    run: Run, times: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, shown: str
) -> None:
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path)
    winnow, cost, *words = shlex.split(line)
    assert (winnow, cost) == ("winnow", "cost")
    printed = run(*words).splitlines()
    for expected in shown.splitlines():
        assert expected == "..." or expected in printed


def test_the_tables_without_a_command_of_their_own_are_printed_too(run: Run) -> None:
    blocks = re.findall(r"```(\w+)\n(.*?)```", PAGE, flags=re.DOTALL)
    loose = [
        content
        for (before, _), (kind, content) in itertools.pairwise(blocks)
        if kind == "text" and before != "bash"
    ]
    assert len(loose) == 2
    printed = run("inputs") + run("systems")
    assert all(content in printed for content in loose)

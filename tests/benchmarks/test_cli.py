from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from api.chat.encoding import Encoder
from api.chat.messages import Message
from benchmarks import sections, serving
from benchmarks.checkpoint import write_checkpoint
from benchmarks.cli import main
from benchmarks.context import ContextTime, _label, growth_table
from benchmarks.peers import ParityError, export_float32
from benchmarks.profile import OperatorTime, folded
from benchmarks.sections import Section
from benchmarks.serving import ServingError, messages
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
        (attention, context) for context in (128, 256) for attention in ("sparse", "dense")
    ]
    for line in lines:
        indexer_s, step_s = float(str(line["indexer_s"])), float(str(line["step_s"]))
        assert 0 < indexer_s < step_s if line["attention"] == "sparse" else indexer_s == 0
    assert plot.read_text().startswith("<?xml")


def test_growth_is_held_against_what_the_indexer_explains() -> None:
    found = [
        ContextTime("sparse", 500, 0.010, 0.002),
        ContextTime("dense", 500, 0.010, 0.0),
        ContextTime("sparse", 2048, 0.015, 0.004),
        ContextTime("dense", 2048, 0.050, 0.0),
    ]
    *_, last, _, _ = growth_table(found).splitlines()
    cells = [cell.strip() for cell in last.strip("|").split("|")]
    assert cells == ["2,048", "15.0", "4.000", "1.50x", "12.0", "1.25x", "50.0", "5.00x"]
    assert [_label(tokens) for tokens in (500, 1024, 65536)] == ["500", "1K", "64K"]


def test_clients_are_answered_over_http(folder: Path, tmp_path: Path) -> None:
    arguments = ["--clients", "2", "--requests", "1", "--prompt", "20", "--tokens", "4"]
    results = run(folder, tmp_path, "serve", "--alone", *arguments)
    (line,) = results["Over HTTP"]
    assert (line["who"], line["clients"]) == ("winnow", 2)
    assert line["later_p50_s"] is None, "every request was of the burst"


def test_messages_have_the_length_asked_for_and_never_come_twice(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = list(islice(messages(folder, 50), 10))
    assert len(set(texts)) == 10
    assert [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts] == [50] * 10


def test_every_server_computes_the_same_prompt(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    exported = export_float32(folder, tmp_path / "theirs")
    serving.add_chat_template(exported)
    text = next(messages(folder, 30))
    theirs = AutoTokenizer.from_pretrained(exported).apply_chat_template(
        [{"role": "user", "content": text}], return_dict=False
    )
    message = Message(role="user", content=text)
    assert theirs == Encoder.from_folder(folder).encode([message], thinking=False).token_ids


def test_requests_after_the_burst_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []

    def answered(http: object, address: str, model: str, text: str, tokens: int) -> Any:
        sent.append(text)
        return (float(text), tokens)

    monkeypatch.setattr(serving, "_request", answered)
    news = map(str, range(100))
    shape = {"clients": 2, "requests": 3, "prompt_tokens": 1, "tokens": 4}
    first, second = (serving.measure("us", "", "", news, **shape) for _ in range(2))
    assert sorted(map(int, sent)) == list(range(14)), "nothing is sent twice, warm-ups included"
    # Message 0 warms up, 1 to 3 are the first client's, 4 to 6 the other's.
    assert (first.burst_p50_s, first.burst_max_s, first.later_p50_s) == (2.5, 4.0, 4.0)
    assert (second.burst_p50_s, second.later_p50_s) == (9.5, 11.0)


def test_an_answer_without_text_has_no_first_token() -> None:
    def empty(request: httpx.Request) -> httpx.Response:
        usage = 'data: {"choices": [{"delta": {"content": ""}}], "usage": {"completion_tokens": 1}}'
        return httpx.Response(200, text=f"{usage}\n\ndata: [DONE]\n\n")

    http = httpx.Client(transport=httpx.MockTransport(empty))
    with pytest.raises(ServingError, match="without any text, 1 tokens"):
        serving._request(http, "http://there", "model", "hello", 4)


@pytest.mark.parametrize(
    "arguments",
    [
        "step --steps 0",
        "step --context 0",
        "step --batch 0",
        "step --batch 1 -1",
        "step --threads 0",
        "step --repeats -1",
        "step --top 0",
        "step --temperature -1",
        "step --steps many",
        "step --json {missing}/steps.json",
        "step --model {missing}",
        "step --model {empty}",
        "peers --tokens 1",
        "peers --repeats 0",
        "peers --prompt 0",
        "serve --clients 0",
        "serve --requests 0",
        "serve --prompt 0",
        "context --steps 0",
        "context --plot {missing}/context.svg",
        "forms --repeats 0",
        "all --output {missing}",
        "all --model embedded",
        "all --clock cpu",
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_line(
    arguments: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = arguments.format(missing=tmp_path / "missing", empty=tmp_path)
    try:
        status: object = main(filled.split())
    except SystemExit as ended:  # as argparse does
        status = ended.code
    assert status == 2
    said = capsys.readouterr()
    *_, error = said.err.splitlines()
    assert error.startswith("winnow bench") and not said.out
    flag = next(word for word in arguments.split() if word.startswith("--"))
    assert flag in error or str(tmp_path) in error


@pytest.mark.check
def test_transformers_serve_stands_beside_it(folder: Path, tmp_path: Path) -> None:
    arguments = ["--clients", "2", "--requests", "1", "--prompt", "20", "--tokens", "4"]
    results = run(folder, tmp_path, "serve", *arguments)
    assert [line["who"] for line in results["Over HTTP"]] == ["winnow", "transformers serve"]


def test_one_benchmark_that_fails_does_not_lose_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differs(*_: Any, **__: Any) -> Section:
        raise ParityError("token 3 is 1 here and 2 there")

    for name in ("over_http", "steps", "over_context", "over_forms"):
        monkeypatch.setattr(sections, name, lambda *_, **__: Section("Numbers", "a table", [1]))
    monkeypatch.setattr(sections, "generation", differs)
    assert main(["all", "--threads", "1", "--output", str(tmp_path)]) == 1
    report = (tmp_path / "README.md").read_text()
    assert report.count("Failed: token 3 is 1 here") == 2 and report.count("a table") == 5
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert results["Peers: mid"] == [] and results["Numbers: mid"] == [1]


def test_what_is_not_listed_of_a_profile_is_summed_up() -> None:
    found = [OperatorTime(name, "", 2.0, us) for name, us in (("a", 5.0), ("b", 3.0), ("c", 1.0))]
    assert folded(found, 1) == [found[0], OperatorTime("others", "", 4.0, 4.0)]
    assert folded(found, 3) == found

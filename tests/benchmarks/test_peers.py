from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import (
    EachStep,
    ParityError,
    Peer,
    Transformers,
    Winnow,
    check_parity,
    compare,
    export_float32,
    llama_cpp_found,
)
from benchmarks.sections import line_up
from benchmarks.step import load, prompt
from engine.model_config import ModelConfig
from scheduler.plan import StepPlan, StepResult
from tests.checkpoints import random_weights, tiny_config
from tests.checkpoints import write_checkpoint as write_weights

TINY = tiny_config(num_hidden_layers=2, index_head_dim=64)
VOCAB = TINY["vocab_size"]


def test_everyone_is_timed_after_parity(tmp_path: Path) -> None:
    folder = write_weights(tmp_path / "ours", TINY, random_weights(TINY), fp8=True)
    exported = export_float32(folder, tmp_path / "theirs")
    peers = line_up(folder, exported, sequences=2, tokens=64, threads=1)
    found = compare(peers, VOCAB, batches=[2], prompt_tokens=[40], tokens=3, repeats=1)
    names = ["winnow", "winnow, batch-invariant", "transformers"]
    if llama_cpp_found(ModelConfig.from_folder(exported)):
        names.append("llama.cpp")
    assert [(g.who, g.batch, g.prompt_tokens) for g in found] == [(n, 2, 40) for n in names]
    assert all(g.prefill_s > 0 and g.decode_step_s > 0 for g in found)
    assert all(len(g.prefill_runs_s) == len(g.decode_step_runs_s) == 1 for g in found)


def test_every_timed_step_of_winnow_has_a_row_of_each_sequence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a step takes but 48 prompt tokens, so that the first decode long before the last."""
    config = tiny_config(num_nextn_predict_layers=0, num_hidden_layers=1)
    folder = write_weights(tmp_path, config, random_weights(config))
    replica = load(folder, sequences=6, tokens=96, step_tokens=48)
    rows: list[int] = []
    execute = replica.runner.execute

    def noted(plan: StepPlan) -> StepResult:
        rows.append(len(plan.rows))
        return execute(plan)

    monkeypatch.setattr(replica.runner, "execute", noted)
    prompts = [prompt(40, VOCAB, seed) for seed in range(6)]
    seen: list[int] = []
    Winnow("winnow", replica).generate(prompts, 5, lambda _: seen.append(len(rows)))
    assert len(seen) == 5 and seen[0] > 3, "the prefill took several steps"
    assert rows[seen[0] : seen[-1]] == [6] * 4, "one step between two calls, of all six"
    assert not replica.runner.slots, "the replica can be used again"


def test_sequences_that_end_before_the_others_are_an_error(tmp_path: Path) -> None:
    config = tiny_config(num_nextn_predict_layers=0, num_hidden_layers=1)
    folder = write_weights(tmp_path, config, random_weights(config))
    prompts = [prompt(62, VOCAB, seed) for seed in range(4)]
    winnow = Winnow("winnow", load(folder, sequences=4, tokens=64, step_tokens=64))
    with pytest.raises(RuntimeError, match="sequence 0 ended before the others"):
        winnow.generate(prompts, 5, lambda _: None)


class Recited:
    """A peer that says what it is given, and counts its calls."""

    def __init__(self, who: str, wrong_from_tokens: int = 1 << 30) -> None:
        self.who, self.wrong_from_tokens, self.calls = who, wrong_from_tokens, 0

    def generate(self, prompts: list[list[int]], tokens: int, each_step: EachStep) -> None:
        self.calls += 1
        for _ in range(tokens):
            each_step([int(len(ids) >= self.wrong_from_tokens) for ids in prompts])


def test_nothing_is_timed_before_every_shape_has_parity() -> None:
    ours, theirs = Recited("winnow"), Recited("theirs", wrong_from_tokens=20)
    shapes: dict[str, Any] = {"batches": [2], "prompt_tokens": [10, 20], "tokens": 3}
    with pytest.raises(ParityError, match="1 in theirs, 2 x 20"):
        compare([ours, theirs], VOCAB, **shapes, repeats=3)
    assert ours.calls == theirs.calls == 2, "once for each shape's parity"


def test_another_checkpoint_fails_parity_and_nothing_is_timed(tmp_path: Path) -> None:
    config = tiny_config(num_nextn_predict_layers=0, num_hidden_layers=2)
    ours, theirs = (
        write_weights(tmp_path / str(seed), config, random_weights(config, seed)) for seed in (0, 1)
    )
    peers: list[Peer] = [
        Winnow("winnow", load(ours, sequences=1, tokens=64)),
        Transformers(theirs),
    ]
    with pytest.raises(ParityError, match=r"sequence 0: token 0 .* in transformers"):
        compare(peers, VOCAB, batches=[1], prompt_tokens=[20], tokens=2, repeats=1)


def test_parity_names_the_first_difference() -> None:
    assert check_parity([[1, 2], [3, 4]], [[1, 2], [3, 4]], "them") == 0
    with pytest.raises(ParityError, match="sequence 1: token 1 is 4 here and 5 in them"):
        check_parity([[1, 2], [3, 4]], [[1, 2], [3, 5]], "them")


def test_few_sequences_of_a_large_batch_may_part() -> None:
    ours = [[7] * 32, [8] * 32, [9] * 32]
    theirs = [list(step) for step in ours]
    theirs[1][3] = theirs[2][3] = theirs[2][30] = 1
    assert check_parity(ours, theirs, "them") == 2
    theirs[2][31] = 1
    with pytest.raises(ParityError, match=r"sequence 31.*3 of 32 sequences have parted"):
        check_parity(ours, theirs, "them")

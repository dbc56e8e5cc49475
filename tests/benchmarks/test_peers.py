from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.peers import (
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
from benchmarks.step import load
from tests.checkpoints import random_weights, tiny_config
from tests.checkpoints import write_checkpoint as write_weights

TINY = tiny_config(num_hidden_layers=2)
VOCAB = TINY["vocab_size"]


def test_everyone_is_timed_after_parity(tmp_path: Path) -> None:
    folder = write_weights(tmp_path / "ours", TINY, random_weights(TINY), fp8=True)
    exported = export_float32(folder, tmp_path / "theirs")
    peers = line_up(folder, exported, sequences=2, tokens=64, threads=1)
    found = compare(peers, VOCAB, batches=[2], prompt_tokens=[40], tokens=3, repeats=1)
    names = ["winnow", "winnow, batch-invariant", "transformers"]
    if llama_cpp_found():
        names.append("llama.cpp")
    assert [(g.who, g.batch, g.prompt_tokens) for g in found] == [(n, 2, 40) for n in names]
    assert all(g.prefill_s > 0 and g.decode_step_s > 0 for g in found)


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
    check_parity([[1, 2], [3, 4]], [[1, 2], [3, 4]], "them")
    with pytest.raises(ParityError, match="sequence 1: token 1 is 4 here and 5 in them"):
        check_parity([[1, 2], [3, 4]], [[1, 2], [3, 5]], "them")

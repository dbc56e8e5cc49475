"""A run that was interrupted and resumed ends in the weights of one that was not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from api.chat.encoding import Encoder
from training import train as module
from training.config import ModelConfig
from training.data import Mix
from training.model import DeepseekV32
from training.snapshot import read_position
from training.stages import EMBEDDED, RECIPE, Recipe, Stage
from training.train import train

SMALL = ModelConfig(
    vocab_size=RECIPE.model.vocab_size,
    hidden_size=32,
    num_hidden_layers=2,
    intermediate_size=48,
    moe_intermediate_size=16,
    n_routed_experts=8,
    num_attention_heads=2,
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=8,
    index_n_heads=2,
    index_head_dim=16,
    index_topk=8,
)
FACTS = Mix(facts=1.0, fact_count=(1, 2), questions=(1, 2))
MICRO = Recipe(
    seed=3,
    model=SMALL,
    copying=False,
    corpus_seed=0,
    corpus_cases=0,
    stages=(
        Stage(name="dense", steps=3, rows=2, length_tokens=96, mix=FACTS, mtp_rows=1, decay=2),
        Stage(
            name="warmup",
            steps=2,
            rows=1,
            length_tokens=96,
            mix=FACTS,
            yarn=True,
            mode="warmup",
            learns="indexer",
        ),
        Stage(
            name="sparse",
            steps=4,
            rows=2,
            length_tokens=96,
            mix=FACTS,
            yarn=True,
            mode="sparse",
            mtp_rows=1,
            quantise=True,
        ),
    ),
    last_dense_stage="dense",
)


class Interrupted(Exception):
    """Stands for a crash."""


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.from_folder(EMBEDDED)


@pytest.fixture(scope="module")
def whole(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DeepseekV32]:
    run = tmp_path_factory.mktemp("whole")
    return run, train(MICRO, encoder, run, save_every=1, probe_every=100)


@pytest.mark.parametrize(("stage", "step"), [("dense", 2), ("sparse", 3)])
def test_resumed_run_gives_the_same_weights(
    stage: str,
    step: int,
    whole: tuple[Path, DeepseekV32],
    encoder: Encoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save = module.save_snapshot

    def crash_after_saving(path: Path, model: Any, optimisers: Any, name: str, done: int) -> None:
        save(path, model, optimisers, name, done)
        if (name, done) == (stage, step):
            raise Interrupted

    monkeypatch.setattr(module, "save_snapshot", crash_after_saving)
    with pytest.raises(Interrupted):
        train(MICRO, encoder, tmp_path, save_every=1, probe_every=100)
    assert read_position(tmp_path / "last.safetensors") == (stage, step)
    monkeypatch.undo()
    resumed = train(MICRO, encoder, tmp_path, save_every=1, probe_every=100)
    for name, value in whole[1].state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_warmup_changes_the_indexer_alone(whole: tuple[Path, DeepseekV32]) -> None:
    from safetensors.torch import load_file

    run, _ = whole
    before, after = load_file(run / "dense.safetensors"), load_file(run / "warmup.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(".indexer." in name for name in changed)


def test_log_has_one_line_for_each_step(whole: tuple[Path, DeepseekV32]) -> None:
    lines = [json.loads(line) for line in (whole[0] / "log.jsonl").read_text().splitlines()]
    assert [(one["stage"], one["step"]) for one in lines] == [
        (stage.name, step) for stage in MICRO.stages for step in range(stage.steps)
    ]
    assert "held_out" in lines[-1]


def test_rates_rise_stay_and_fall() -> None:
    stage = Stage(
        name="s",
        steps=100,
        rows=1,
        length_tokens=1,
        mix=FACTS,
        warmup=10,
        decay=20,
        final_factor=0.1,
    )
    assert stage.factor(0) == pytest.approx(0.1)
    assert stage.factor(50) == 1.0
    assert stage.factor(90) == pytest.approx(0.55)
    assert 0.1 < stage.factor(99) < 0.2

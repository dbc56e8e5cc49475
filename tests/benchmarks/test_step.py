from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from benchmarks.checkpoint import MID_CONFIG, write_checkpoint
from benchmarks.profile import BETWEEN, _shapes, operators
from benchmarks.step import Stopwatch, decode_stopwatch, load, measure_decode, measure_prefill
from engine.model_config import ModelConfig
from scheduler.request import Sampling
from tests.checkpoints import tiny_config

TINY = tiny_config(num_nextn_predict_layers=0, num_hidden_layers=2, initializer_range=0.02)
GREEDY = Sampling(max_tokens=64, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), TINY)


def test_the_mid_checkpoint_has_the_size_peers_were_measured_with(tmp_path: Path) -> None:
    config = ModelConfig.from_json(MID_CONFIG)
    assert (config.kv_lora_rank, config.index_topk, config.index_n_heads) == (512, 64, 32)
    files = [write_checkpoint(tmp_path / name) / "model.safetensors" for name in ("a", "b")]
    first, second = (file.read_bytes() for file in files)
    assert first == second, "the same seed gives the same bytes"
    assert 15.7e6 < len(first) / 4 < 15.9e6
    head = load_file(files[0].parent / "model.safetensors")["lm_head.weight"]
    silent = head.abs().sum(1) == 0
    assert silent[:7].all() and silent[3072:].all(), "control tokens, and ids without a token"
    assert silent.sum() < 1300


def test_decode_is_measured_at_the_context_asked_for(folder: Path) -> None:
    replica = load(folder, sequences=3, tokens=200)
    watch = decode_stopwatch(replica, batch=3, context=150, clock="wall", sampling=GREEDY)
    with watch:
        watch.step()
    assert [s.computed_tokens for s in watch.scheduler.running] == [151] * 3
    rows = [len(mirror.token_ids) for mirror in replica.runner.slots.values()]
    assert rows == [152] * 3, "150 of the prompt, one by the step that admits, one by this"


def test_the_parts_of_a_step_add_up(folder: Path) -> None:
    replica = load(folder, sequences=2, tokens=200)
    times = measure_decode(replica, batch=2, context=100, steps=5)
    parts = (times.plan_s, times.batch_s, times.forward_s, times.sample_s, times.commit_s)
    assert all(part > 0 for part in parts)
    assert times.overhead_s == pytest.approx(times.step_s - times.forward_s)
    assert not replica.runner.slots, "the replica can be used again"
    assert measure_prefill(replica, batch=2, context=100, repeats=1) > 0


def test_a_step_that_calls_no_model_is_forward_altogether(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a captured graph is replayed."""
    replica = load(folder, sequences=1, tokens=200)
    watch = decode_stopwatch(replica, batch=1, context=100, clock="wall", sampling=GREEDY)
    with watch:
        watch.step()
    logits = replica.runner.logits
    monkeypatch.setattr(replica.runner, "compute", lambda rows: logits)
    replayed = Stopwatch(watch.scheduler, replica.runner, "wall")
    with replayed:
        replayed.step()
    times = replayed.times()
    assert 0 < times.forward_s < times.step_s
    assert times.batch_s + times.forward_s + times.sample_s == pytest.approx(
        times.step_s - times.plan_s - times.commit_s
    )


def test_a_context_beyond_the_replica_is_an_error(folder: Path) -> None:
    replica = load(folder, sequences=1, tokens=64)
    with pytest.raises(ValueError, match="64"):
        measure_decode(replica, batch=1, context=100, steps=1)


def test_the_profile_lists_the_operators_of_a_step(folder: Path) -> None:
    replica = load(folder, sequences=1, tokens=200)
    watch = decode_stopwatch(replica, batch=1, context=100, clock="wall", sampling=GREEDY)
    *found, between = operators(watch, 2, top=1000)
    assert found == sorted(found, key=lambda operator: -operator.self_us)
    products = [o for o in found if o.name == "aten::bmm"]
    assert products and all(o.calls >= 1 and o.shapes for o in products)
    assert (between.name, between.calls) == (BETWEEN, 0)
    assert between.self_us > 0, "Python runs between operators"
    assert len(watch.steps) == 3, "one before, that is not counted"


def test_the_profile_leaves_out_the_shape_of_packed_weights() -> None:
    shapes = [[1, 1024], [2310369, 1], [256, 1024], []]
    assert _shapes("mkl::_mkl_linear", shapes) == "1x1024 256x1024"
    assert _shapes("aten::bmm", shapes) == "1x1024 2310369x1 256x1024"

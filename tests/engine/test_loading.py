from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cost_model.predictor import StepPredictor
from engine import loading
from engine.config import ConfigError, EngineConfig
from engine.loading import Replica, load_replica
from engine.model_config import CheckpointError
from kernels.cache import CacheDtype
from scheduler.outcome import Refusal
from scheduler.request import Sampling

PAGE_BYTES = 2 * 64 * (48 + 32) * 4
"""Two layers of 64 tokens with 32 + 16 latent values and 32 index values in float32."""

SHARED = ("model.layers.2.embed_tokens.weight", "model.layers.2.shared_head.head.weight")
"""The MTP layer's copies of the main model's tensors: held once."""


def load(folder: Path, **settings: Any) -> Replica:
    limits: dict[str, Any] = {"kv_cache_bytes": 20 * PAGE_BYTES, "threads": 1, "device": "cpu"}
    return load_replica(EngineConfig(model=str(folder), **limits | settings), progress=False)


def generate(replica: Replica, prompt: list[int], count: int) -> list[int]:
    sampling = Sampling(max_tokens=count, temperature=0.0, ignore_eos=True)
    assert not isinstance(replica.scheduler.submit("r", prompt, sampling), Refusal)
    tokens: list[int] = []
    while replica.scheduler.has_work:
        for news in replica.scheduler.commit(replica.runner.execute(replica.scheduler.plan())):
            tokens += news.token_ids
    return tokens


def test_ready_describes_the_replica_and_its_memory(checkpoint: Path) -> None:
    replica = load(checkpoint)
    ready = replica.ready
    assert (ready.device, ready.dtype, ready.vocab_size) == ("cpu", "float32", 320)
    assert ready.total_pages == 20 == replica.scheduler.pool.total_pages
    assert ready.max_model_len == 20 * 64, "as long as the pages allow"
    assert ready.memory["latent_pages"] == 20 * 2 * 64 * 48 * 4
    assert ready.memory["index_key_pages"] == 20 * 2 * 64 * 32 * 4
    own = [w for n, w in load_file(checkpoint / "model.safetensors").items() if n not in SHARED]
    assert ready.memory["weights"] == sum(4 * weight.numel() for weight in own)
    assert len(generate(replica, [5, 6, 7], 4)) == 4


def test_settings_of_the_scheduler_reach_it(checkpoint: Path) -> None:
    settings: dict[str, Any] = {
        "inter_token_target_s": 0.25,
        "prefill_floor_tokens": 7,
        "awaited_s": 3.0,
        "awaited_share": 0.1,
        "cost_doubling_tokens": 9000,
        "max_pre_warms": 3,
        "max_queued_requests": 5,
    }
    replica = load(checkpoint, max_queued_tokens=77, **settings)
    found = replica.scheduler.config
    assert {name: getattr(found, name) for name in settings} == settings
    assert (replica.ready.max_queued_requests, replica.ready.max_queued_tokens) == (5, 77)
    assert replica.ready.pre_warms
    for off in ({"max_pre_warms": 0}, {"enable_prefix_caching": False}):
        assert not load(checkpoint, **off).ready.pre_warms


def test_the_predictor_learns_from_the_steps_that_run(checkpoint: Path) -> None:
    replica = load(checkpoint)
    predictor = replica.scheduler.predictor
    assert isinstance(predictor, StepPredictor)
    generate(replica, [5, 6, 7], 4)
    assert (predictor.error.prefill.steps, predictor.error.decode.steps) == (1, 3)
    without = load(checkpoint, inter_token_target_s=0)
    assert without.scheduler.config.inter_token_target_s is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inter_token_target_s": -0.1}, "--inter-token-target-s is -0.1"),
        ({"inter_token_target_s": float("nan")}, "--inter-token-target-s is nan"),
        ({"prefill_floor_tokens": 0}, "--prefill-floor-tokens is 0; it must be at least 1"),
        ({"max_queued_tokens": 0}, "--max-queued-tokens is 0; it must be at least 1"),
        ({"awaited_s": -1.0}, "--awaited-s is -1.0; it must be at least 0"),
        ({"awaited_share": 1.5}, r"--awaited-share is 1.5; it must be in \[0, 1\]"),
        ({"cost_doubling_tokens": -1}, "--cost-doubling-tokens is -1"),
        ({"max_pre_warms": -1}, "--max-pre-warms is -1"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**settings)


def test_the_end_of_sequence_comes_from_the_checkpoint(checkpoint: Path) -> None:
    replica = load(checkpoint)
    assert replica.scheduler.config.eos_token_ids == replica.runner.eos_token_ids == (1,)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"dtype": "bfloat16"}, ("bfloat16", "bfloat16")),
        ({"dtype": "float32"}, ("float32", "float32")),
        ({"index_dtype": "fp8"}, ("float32", "fp8")),
        ({"dtype": "bfloat16", "kv_cache_dtype": "float32"}, ("float32", "bfloat16")),
    ],
)
def test_dtypes_are_as_asked_and_the_model_runs_in_them(
    checkpoint: Path, asked: dict[str, Any], expected: tuple[CacheDtype, CacheDtype]
) -> None:
    replica = load(checkpoint, **asked)
    layout = replica.runner.cache.layout
    assert (layout.latent, layout.index) == expected
    prompt = list(range(7, 107))
    assert len(generate(replica, prompt, 5)) == 5
    assert replica.runner.logits is not None
    assert replica.runner.logits.dtype == torch.float32
    assert replica.runner.logits.isfinite().all()


def test_bfloat16_stays_close_to_float32(checkpoint: Path) -> None:
    found = []
    for dtype in ("bfloat16", "float32"):
        replica = load(checkpoint, dtype=dtype, attention="dense")
        generate(replica, list(range(7, 47)), 1)
        assert replica.runner.logits is not None
        found.append(replica.runner.logits)
    assert (found[0] - found[1]).abs().max() < 1.0
    assert (found[0] - found[1]).abs().max() > 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_model_len": 20_000}, "--max-model-len is 20000.*at most 10240"),
        ({"max_model_len": 64 * 20 + 1}, "hold only 1280 tokens"),
        ({"kv_cache_bytes": PAGE_BYTES - 1}, f"one page needs {PAGE_BYTES} bytes"),
        ({"kv_cache_dtype": "fp8"}, "kv_lora_rank is 32.*multiple of 128"),
    ],
)
def test_settings_the_model_or_memory_cannot_honour_are_refused(
    checkpoint: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(checkpoint, **settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="--device is cuda"):
        load(checkpoint, device="cuda")


def test_the_same_bits_on_cuda_take_the_kernels(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(loading, "obstacle", lambda *_: "NVIDIA A100 has compute capability 8.0")
    message = r"--batch-invariant on CUDA takes the kernels for Hopper.*: NVIDIA A100 has"
    with pytest.raises(ConfigError, match=message):
        load(checkpoint, device="cuda", kv_cache_dtype="bfloat16", batch_invariant=True)


def test_no_more_pages_than_the_limits_can_use(checkpoint: Path) -> None:
    replica = load(checkpoint, kv_cache_bytes=100 * PAGE_BYTES, max_num_seqs=2, max_model_len=130)
    assert replica.ready.total_pages == loading.IDLE_FACTOR * 2 * 3


def test_without_a_cache_size_a_share_of_free_memory_is_taken(checkpoint: Path) -> None:
    replica = load(checkpoint, kv_cache_bytes=None, max_num_seqs=1)
    assert replica.ready.max_model_len == 10_240
    assert replica.ready.total_pages == loading.IDLE_FACTOR * 160


def test_available_memory_counts_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 900 kB\nMemFree: 10 kB\nMemAvailable:     400 kB\n")
    monkeypatch.setattr(loading, "MEMINFO", meminfo)
    assert loading._available_bytes() == 400 * 1024
    monkeypatch.setattr(loading, "MEMINFO", tmp_path / "absent")  # as on a Mac
    assert loading._available_bytes() > 2**20


def test_a_broken_checkpoint_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        load(tmp_path / "nowhere" / "at" / "all")
    folder = tmp_path / "cut"
    shutil.copytree(checkpoint, folder)
    (folder / "model.safetensors").write_bytes(b"12345678")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load(folder)


def test_threads_are_as_asked_then_as_the_environment_says_then_one_per_core(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    try:
        load(checkpoint, threads=3)
        assert torch.get_num_threads() == 3
        monkeypatch.setenv("OMP_NUM_THREADS", "3")  # torch has read it when it was imported
        load(checkpoint, threads=None)
        assert torch.get_num_threads() == 3
        monkeypatch.delenv("OMP_NUM_THREADS")
        load(checkpoint, threads=None)
        assert torch.get_num_threads() == len(os.sched_getaffinity(0))
    finally:
        torch.set_num_threads(before)

"""How a replica of the kernels is put together, on a machine that has none of what it asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine import loading
from engine.cache import CacheLayout
from engine.config import ConfigError, EngineConfig
from engine.hopper import rehearsal
from engine.hopper.graphs import Bucket
from engine.hopper.model import HopperDeepseekV32
from engine.hopper.replica import HopperParts, StepMemory
from engine.hopper.runner import HopperRunner
from engine.loading import load_replica
from engine.model_config import ModelConfig
from engine.tensors import held_bytes
from scheduler.forms import FormPolicy
from tests.checkpoints import random_weights, write_checkpoint
from tests.engine.hopper.tiny import FIELDS, config_of, weights

GIB = 2**30
FP8 = CacheLayout("fp8", "fp8")
PAGE_BYTES = 64 * (128 + 4 + 32 + 32 + 4)
"""A layer's 64 latent rows (128 e4m3, a scale, 16 rope values) and index keys."""
STEPS = StepMemory(workspace_bytes=1000, graphs_bytes=300, pages_bytes=40 * PAGE_BYTES)


def parts(**settings: Any) -> HopperParts:
    config = EngineConfig(max_model_len=4096, **settings)
    forms = FormPolicy("auto", FIELDS["index_topk"], 20)
    return HopperParts.load(config, config_of(1), dict(weights(1)[0]), forms)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    return write_checkpoint(folder, FIELDS, random_weights(FIELDS), fp8=True)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A GPU of 100 GiB with 90 free, whose steps take what the dict says, in GiB."""
    seen = {"prefill": 3.0, "decode": 2.0, "sampling": 0.5, "free": 90.0}
    taken = iter(["prefill", "decode", "sampling"])

    def peak_bytes(*_: Any) -> int:
        return int(seen[next(taken)] * GIB)

    monkeypatch.setattr(rehearsal, "peak_bytes", peak_bytes)
    monkeypatch.setattr(rehearsal, "sampling_peak_bytes", peak_bytes)
    for name in ("empty_cache", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (seen["free"] * GIB, 100 * GIB))
    return seen


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_a_checkpoint_that_the_kernels_serve(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, batch_invariant: bool
) -> None:
    """All but the device: its kernels are not compiled, and its memory is not asked for."""
    monkeypatch.setattr(loading, "obstacle", lambda *_: None)
    monkeypatch.setattr(HopperParts, "memory", lambda *_: STEPS)
    ran: list[int] = []
    decoded: list[Bucket] = []
    monkeypatch.setattr(rehearsal, "compile_kernels", lambda *_, **how: ran.append(how["longest"]))
    monkeypatch.setattr(rehearsal, "compile_decode", lambda *args, **_: decoded.extend(args[2]))
    config = EngineConfig(
        model=str(checkpoint),
        device="cpu",
        dtype="bfloat16",
        kv_cache_dtype="fp8",
        index_dtype="fp8",
        enforce_eager=True,
        threads=1,
        batch_invariant=batch_invariant,
    )
    found = load_replica(config, progress=False)
    assert isinstance(found.runner, HopperRunner)
    network = found.runner.model
    assert isinstance(network, HopperDeepseekV32) and network.batch_invariant is batch_invariant
    forms = {"mqa"} if batch_invariant else {"mqa", "dense_mqa"}
    assert {bucket.form for bucket in decoded} == forms
    assert found.ready.total_pages == 40 and found.ready.max_model_len == 40 * 64 == ran[0]
    assert found.ready.memory["steps"] == 1000 and found.ready.memory["graphs"] == 300
    assert found.ready.memory["latent_pages"] + found.ready.memory["index_key_pages"] == (
        40 * PAGE_BYTES
    )
    down = network.layers[0].attention.down.weight
    assert down.values.dtype == torch.float8_e4m3fn
    assert found.runner.page_table.table.shape == (config.max_num_seqs, 40)


def test_pages_get_what_weights_steps_and_graphs_leave(gpu: dict[str, float]) -> None:
    found = parts(gpu_memory_utilization=0.9).memory(FP8)
    logits_bytes = 4 * EngineConfig().max_num_seqs * FIELDS["vocab_size"]
    assert found.workspace_bytes == 3.5 * GIB and found.graphs_bytes == 2 * GIB + logits_bytes
    assert found.pages_bytes == (90 - 10 - 3.5 - 2) * GIB - logits_bytes


def test_without_graphs_their_memory_is_the_pages(gpu: dict[str, float]) -> None:
    found = parts(enforce_eager=True).memory(FP8)
    assert found.graphs_bytes == 0 and found.pages_bytes == (90 - 10 - 3.5) * GIB


def test_no_room_for_pages_is_said_with_the_numbers(gpu: dict[str, float]) -> None:
    gpu["free"] = 14.0
    message = r"take 86.0 GiB, steps 3.5, graphs 2.0; --gpu-memory-utilization 0.9 .* is 90.0"
    with pytest.raises(ConfigError, match=message):
        parts().memory(FP8)


def test_a_step_that_does_not_fit_names_what_to_lower(
    gpu: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise torch.cuda.OutOfMemoryError("out of memory")

    monkeypatch.setattr(rehearsal, "peak_bytes", full)
    with pytest.raises(ConfigError, match=r"NVIDIA H200 has 100.0 GiB.*--max-num-seqs \(64\)"):
        parts().memory(FP8)


def test_weights_too_large_for_the_device_are_refused_before_they_are_read(
    gpu: dict[str, float],
) -> None:
    model = ModelConfig.from_json(FIELDS | {"n_routed_experts": 1 << 20, "n_group": 1 << 19})
    config, device = EngineConfig(), torch.device("cuda")
    with pytest.raises(
        ConfigError, match=r"weights take 96.* GiB; NVIDIA H200 has 100.0 GiB.*90.0"
    ):
        loading._check_fits(config, model, torch.bfloat16, device, keep_fp8=True)


def test_held_bytes_counts_every_weight_once() -> None:
    model = config_of(1)
    stored, wide = weights(1)
    linear = sum(w.numel() for name, w in stored.items() if w.dtype == torch.float8_e4m3fn)
    rest = sum(
        w.numel() * w.element_size()
        for name, w in wide.items()
        if stored[name].dtype != torch.float8_e4m3fn
    )
    assert held_bytes(model, compute_bytes=2, keep_fp8=True) == 2 * linear + rest

from __future__ import annotations

import msgspec
import pytest
import torch

from benchmarks.random_model import FULL
from engine.cache import CacheLayout
from engine.hopper import support
from engine.hopper.support import obstacle, unsupported_sizes
from engine.hub import EMBEDDED_MODEL
from engine.model_config import ModelConfig
from kernels.hopper import index_query, indexer_logits, latent_attention, quantise, topk
from tests.checkpoints import tiny_config
from tests.engine.hopper.tiny import config_of

FP8 = CacheLayout("fp8", "fp8")
CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    "model",
    [FULL, ModelConfig.from_folder(EMBEDDED_MODEL), config_of(1)],
    ids=["v3.2", "embedded", "test"],
)
def test_published_embedded_and_test_sizes_are_supported(model: ModelConfig) -> None:
    assert unsupported_sizes(model, FP8, torch.bfloat16) is None
    assert unsupported_sizes(model, CacheLayout("bfloat16", "fp8"), torch.bfloat16) is None


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("num_attention_heads", 96, "num_attention_heads is 96; they take 16, 32, 64, 128"),
        ("index_n_heads", 48, "index_n_heads is 48"),
        ("index_head_dim", 256, "index_head_dim is 256"),
        ("qk_nope_head_dim", 96, "powers of two"),
        ("kv_lora_rank", 384, "kv_lora_rank is 384"),
        ("hidden_size", 7200, "hidden_size is 7200; FP8 products take multiples of 128"),
        ("moe_intermediate_size", 1000, "moe_intermediate_size is 1000"),
        ("index_topk", 8192, "index_topk is 8192; they select at most 4096"),
        ("max_position_embeddings", 1 << 21, "at most 2097151"),
        ("indexer_rope_interleave", True, "half-split"),
    ],
)
def test_other_sizes_are_named(field: str, value: int, part: str) -> None:
    model = msgspec.structs.replace(FULL, **{field: value})
    assert part in str(unsupported_sizes(model, FP8, torch.bfloat16))


def test_other_dtypes_are_named() -> None:
    assert "--dtype is float32" in str(unsupported_sizes(FULL, FP8, torch.float32))
    found = unsupported_sizes(FULL, CacheLayout("fp8", "bfloat16"), torch.bfloat16)
    assert "--index-dtype is bfloat16" in str(found)
    found = unsupported_sizes(FULL, CacheLayout("float32", "fp8"), torch.bfloat16)
    assert "--kv-cache-dtype is float32" in str(found)


def test_the_limits_are_those_of_the_launchers() -> None:
    assert support.HEADS == latent_attention.HEADS
    assert support.INDEX_HEADS == index_query.HEADS == indexer_logits.HEADS
    assert support.INDEX_WIDTHS == indexer_logits.WIDTHS
    assert topk.TILE // 2 == support.MOST_TOP_K
    assert support.WIDEST_NORM == quantise.MAX_WIDTH
    assert support.GROUP == quantise.GROUP


def test_a_cpu_and_an_older_gpu_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "the device is cpu" in str(obstacle(FULL, FP8, torch.bfloat16, torch.device("cpu")))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    found = str(obstacle(FULL, FP8, torch.bfloat16, CUDA))
    assert found.startswith("NVIDIA A100 has compute capability 8.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    assert obstacle(FULL, FP8, torch.bfloat16, CUDA) is None


def test_the_tiny_torch_model_is_not_supported() -> None:
    model = ModelConfig.from_json(tiny_config())
    assert "num_attention_heads is 4" in str(unsupported_sizes(model, FP8, torch.bfloat16))

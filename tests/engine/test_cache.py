from __future__ import annotations

import pytest
import torch

from engine.cache import CacheLayout, PagedCache
from engine.config import PAGE_TOKENS
from engine.model_config import ModelConfig
from kernels.cache import CacheDtype
from tests.checkpoints import tiny_config

MODEL = ModelConfig.from_json(tiny_config(kv_lora_rank=128))
DTYPES: list[CacheDtype] = ["float32", "bfloat16", "fp8"]


def paged_cache(layout: CacheLayout, pages: int) -> PagedCache:
    return PagedCache(MODEL, layout, pages, compute_dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("latent", DTYPES)
@pytest.mark.parametrize("index", DTYPES)
def test_page_bytes_are_the_bytes_of_the_tensors(latent: CacheDtype, index: CacheDtype) -> None:
    layout = CacheLayout(latent, index)
    cache = paged_cache(layout, 5)
    tensors = (cache.latents.rows, cache.index_keys.pages)
    assert sum(t.numel() * t.element_size() for t in tensors) == 5 * layout.page_bytes(MODEL)


def test_a_page_of_the_published_model_takes_three_megabytes_in_fp8() -> None:
    sizes = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "index_head_dim": 128}
    model = ModelConfig.from_json(tiny_config(num_hidden_layers=61, **sizes))
    assert CacheLayout("fp8", "fp8").page_bytes(model) == 61 * 64 * (656 + 132)
    assert CacheLayout("bfloat16", "bfloat16").page_bytes(model) == 61 * 64 * (1152 + 256)


def test_a_page_is_copied_with_both_halves() -> None:
    cache = paged_cache(CacheLayout("float32", "fp8"), 3)
    slots = torch.arange(PAGE_TOKENS) + PAGE_TOKENS  # page 1
    last = MODEL.num_hidden_layers - 1
    cache.latents.write(last, slots, torch.randn(64, 128), torch.randn(64, 16))
    cache.index_keys.write(last, slots, torch.randn(64, 32))
    cache.copy_pages(torch.tensor([1]), torch.tensor([2]))
    rows, keys = cache.latents.read(last, slots), cache.index_keys.read_pages(last, slots[:1] // 64)
    assert rows.any() and keys.any()
    assert torch.equal(cache.latents.read(last, slots + PAGE_TOKENS), rows)
    assert torch.equal(cache.index_keys.read_pages(last, torch.tensor([2])), keys)
    assert not cache.latents.read(last, slots - PAGE_TOKENS).any()

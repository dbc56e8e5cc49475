from __future__ import annotations

import struct
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.cache import (
    CacheDtype,
    IndexCache,
    LatentCache,
    index_key_bytes,
    latent_row_bytes,
)
from kernels.fp8 import quantise_groups, round_trip

CPU = torch.device("cpu")
PAGE_TOKENS = 64
DTYPES: list[CacheDtype] = ["float32", "bfloat16", "fp8"]


def latent_cache(dtype: CacheDtype, **sizes: Any) -> LatentCache:
    settings = {"latent": 128, "rope": 32, "compute_dtype": torch.float32} | sizes
    return LatentCache(2, 4 * PAGE_TOKENS, dtype=dtype, device=CPU, **settings)


def index_cache(dtype: CacheDtype, width: int = 128) -> IndexCache:
    return IndexCache(
        2,
        4,
        page_tokens=PAGE_TOKENS,
        width=width,
        dtype=dtype,
        compute_dtype=torch.float32,
        device=CPU,
    )


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rounded(x: Tensor, dtype: CacheDtype, group: int = 128) -> Tensor:
    """What the cache dtype makes of x."""
    if dtype == "fp8":
        return round_trip(x, group)
    return x.to({"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]).float()


SLOTS = torch.tensor([5, 200, 64, 63])


@pytest.mark.parametrize("dtype", DTYPES)
def test_latent_rows_come_back_as_the_dtype_rounds_them(dtype: CacheDtype) -> None:
    cache = latent_cache(dtype)
    latents, ropes = draw(4, 128), draw(4, 32, seed=1)
    cache.write(1, SLOTS, latents, ropes)
    expected_ropes = ropes if dtype == "float32" else ropes.bfloat16().float()
    expected = torch.cat((rounded(latents, dtype), expected_ropes), dim=1)
    assert torch.equal(cache.read(1, SLOTS), expected)
    shaped = cache.read(1, torch.tensor([[63, 5], [-1, 200]]))
    assert shaped.shape == (2, 2, 160)
    assert torch.equal(shaped[0], expected[[3, 0]])
    assert torch.equal(shaped[1, 1], expected[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_index_keys_come_back_as_the_dtype_rounds_them(dtype: CacheDtype) -> None:
    cache = index_cache(dtype)
    keys = draw(4, 128)
    cache.write(0, SLOTS, keys)
    pages = cache.read_pages(0, torch.tensor([[3, 1], [0, -1]]))
    assert pages.shape == (2, 2 * PAGE_TOKENS, 128)
    expected = rounded(keys, dtype)
    assert torch.equal(pages[0, 200 - 3 * PAGE_TOKENS], expected[1])
    assert torch.equal(pages[0, PAGE_TOKENS], expected[2])
    assert torch.equal(pages[1, [5, 63]], expected[[0, 3]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_writing_leaves_every_other_byte_alone(dtype: CacheDtype) -> None:
    latents, keys = latent_cache(dtype), index_cache(dtype)
    every = torch.arange(4 * PAGE_TOKENS)
    for layer in (0, 1):
        latents.write(layer, every, draw(256, 128, seed=2), draw(256, 32, seed=3))
        keys.write(layer, every, draw(256, 128, seed=4))
    rows, pages = latents.rows.clone(), keys.pages.clone()
    before = [keys.read_pages(layer, torch.arange(4)) for layer in (0, 1)]

    latents.write(1, SLOTS, draw(4, 128), draw(4, 32))
    keys.write(1, SLOTS, draw(4, 128))

    others = torch.tensor([s for s in range(256) if s not in SLOTS.tolist()])
    assert torch.equal(latents.rows[0], rows[0])
    assert torch.equal(latents.rows[1, others], rows[1, others])
    assert not torch.equal(latents.rows[1, SLOTS], rows[1, SLOTS])
    assert torch.equal(keys.pages[0], pages[0])
    after = keys.read_pages(1, torch.arange(4))
    assert torch.equal(after[others], before[1][others])
    assert not torch.equal(after[SLOTS], before[1][SLOTS])


def test_a_latent_row_of_the_real_model_is_656_bytes_laid_out_as_published() -> None:
    assert latent_row_bytes(512, 64, "fp8") == 656
    assert latent_row_bytes(512, 64, "bfloat16") == 1152
    cache = latent_cache("fp8", latent=512, rope=64)
    latents = draw(1, 512) * torch.tensor([1.0, 100.0, 0.01, 7.0]).repeat_interleave(128)
    ropes = draw(1, 64, seed=1).bfloat16()
    cache.write(0, torch.tensor([77]), latents, ropes.float())

    row = bytes(cache.rows[0, 77].tolist())
    assert len(row) == 656
    values, scales = quantise_groups(latents)
    assert row[:512] == bytes(values.view(torch.uint8)[0].tolist())
    assert struct.unpack("<4f", row[512:528]) == tuple(scales[0].tolist())
    assert row[528:] == bytes(ropes.view(torch.uint8)[0].tolist())
    assert not cache.rows[0, 76].any() and not cache.rows[0, 78].any()


def test_an_index_page_of_the_real_model_is_8448_bytes_keys_first_then_scales() -> None:
    assert index_key_bytes(128, "fp8") == 132
    cache = index_cache("fp8")
    assert cache.pages.shape == (2, 4, 8448)
    keys = draw(2, 128) * torch.tensor([[1.0], [1000.0]])
    cache.write(0, torch.tensor([2 * 64 + 5, 2 * 64 + 63]), keys)

    page = bytes(cache.pages[0, 2].tolist())
    values, scales = quantise_groups(keys)
    codes = values.view(torch.uint8)
    assert page[5 * 128 : 6 * 128] == bytes(codes[0].tolist())
    assert page[63 * 128 : 64 * 128] == bytes(codes[1].tolist())
    assert struct.unpack("<f", page[8192 + 5 * 4 : 8192 + 6 * 4]) == (scales[0].item(),)
    assert struct.unpack("<f", page[8192 + 63 * 4 :]) == (scales[1].item(),)
    touched = {*range(640, 768), *range(8064, 8192), *range(8212, 8216), *range(8444, 8448)}
    assert all(byte == 0 for i, byte in enumerate(page) if i not in touched)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pages_are_copied_whole_in_every_layer(dtype: CacheDtype) -> None:
    latents, keys = latent_cache(dtype), index_cache(dtype)
    every = torch.arange(4 * PAGE_TOKENS)
    for layer in (0, 1):
        latents.write(layer, every, draw(256, 128, seed=layer), draw(256, 32, seed=layer))
        keys.write(layer, every, draw(256, 128, seed=layer + 2))
    rows, pages = latents.rows.clone(), keys.pages.clone()
    # 1 -> 3 and 3 -> 0 at once: a target may be another copy's source.
    source, target = torch.tensor([1, 3]), torch.tensor([3, 0])
    latents.copy_pages(source, target, PAGE_TOKENS)
    keys.copy_pages(source, target)
    came_from = [3, 1, 2, 1]
    paged = rows.view(2, 4, PAGE_TOKENS, -1)
    assert torch.equal(latents.rows.view(paged.shape), paged[:, came_from])
    assert torch.equal(keys.pages, pages[:, came_from])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_padding_slot_reads_zeros_whatever_lies_in_slot_0(dtype: CacheDtype) -> None:
    cache = latent_cache(dtype)
    cache.write(0, torch.tensor([0]), torch.full((1, 128), torch.nan), torch.ones(1, 32))
    assert cache.read(0, torch.tensor([[-1, -1]])).eq(0).all()


def test_fp8_zero_rows_stay_zero() -> None:
    cache = latent_cache("fp8")
    cache.write(0, SLOTS, torch.zeros(4, 128), torch.zeros(4, 32))
    assert cache.read(0, SLOTS).eq(0).all()


def test_reading_gives_the_compute_dtype() -> None:
    for dtype in DTYPES:
        cache = latent_cache(dtype, compute_dtype=torch.bfloat16)
        assert cache.read(0, SLOTS).dtype == torch.bfloat16


def test_an_fp8_latent_width_must_be_a_multiple_of_128() -> None:
    with pytest.raises(ValueError, match="kv_lora_rank is 96"):
        latent_cache("fp8", latent=96)

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.cache import LatentCache, latent_rows
from kernels.dense_mla import dense_mla
from kernels.sparse_mla import sparse_mla, sparse_mla_reference

LATENT, ROPE, HEADS, SLOTS = 128, 16, 3, 40
SCALE = 0.11


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cache_of(kind: str, used: list[int]) -> tuple[Tensor, Tensor]:
    """Rows at `used`, NaN elsewhere; and all rows as float64."""
    cache = LatentCache(
        1,
        SLOTS,
        latent=LATENT,
        rope=ROPE,
        dtype="fp8" if kind == "fp8" else "float32",
        compute_dtype=torch.float64,
        device=torch.device("cpu"),
    )
    cache.rows.view(torch.uint8).fill_(0xFF)
    slots = torch.tensor(used)
    cache.write(0, slots, randn(len(used), LATENT, seed=1), randn(len(used), ROPE, seed=2))
    rows = torch.zeros(SLOTS, LATENT + ROPE, dtype=torch.float64)
    rows[slots] = cache.read(0, slots)
    return cache.rows[0], rows


@pytest.mark.parametrize("kind", ["fp8", "float32"])
@pytest.mark.parametrize("slot_dtype", [torch.int32, torch.int64])
def test_sparse_mla_matches_the_formula(kind: str, slot_dtype: torch.dtype) -> None:
    lists = [[5, -1, 7, 31], [-1, -1, -1, -1], [9, 9, 2, -1]]
    cache, rows = cache_of(kind, [2, 5, 7, 9, 31])
    q = randn(3, HEADS, LATENT + ROPE, seed=3)
    out, lse = sparse_mla(q, cache, torch.tensor(lists, dtype=slot_dtype), SCALE, latent=LATENT)
    expected, expected_lse = sparse_mla_reference(q, rows, lists, SCALE, latent=LATENT)
    # Softmax weights are float32 by contract.
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-5, rtol=1e-6)
    assert out[1].eq(0).all() and lse[1].eq(-torch.inf).all()


@pytest.mark.parametrize("kind", ["fp8", "float32"])
def test_rows_read_from_the_tensor_are_those_that_the_cache_reads(kind: str) -> None:
    cache, rows = cache_of(kind, [1, 4])
    found = latent_rows(cache, torch.tensor([[4, -1], [1, 1]]), LATENT, ROPE, torch.float64)
    assert torch.equal(found[0, 0], rows[4]) and torch.equal(found[1], rows[[1, 1]])
    assert found[0, 1].eq(0).all()


def test_dense_mla_is_sparse_mla_over_all_that_is_visible() -> None:
    tables = torch.tensor([[3, 1, -1], [4, 0, 2]])
    visible = [7, 8, 0, 17]
    slots = [[page * 8 + s for page in tables[t // 2].tolist() for s in range(8)] for t in range(4)]
    lists = [row[:count] for row, count in zip(slots, visible, strict=True)]
    cache, rows = cache_of("fp8", sorted({slot for row in lists for slot in row}))
    q = randn(4, HEADS, LATENT + ROPE, seed=4)
    out, lse = dense_mla(
        q, cache, tables, torch.tensor(visible), SCALE, latent=LATENT, page_tokens=8
    )
    expected, expected_lse = sparse_mla_reference(q, rows, lists, SCALE, latent=LATENT)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-5, rtol=1e-6)


def test_shapes_that_do_not_fit_are_refused() -> None:
    q, cache = randn(3, HEADS, LATENT + ROPE, seed=5), torch.zeros(4, 164, dtype=torch.uint8)
    with pytest.raises(ValueError, match="slots has 2 rows; q has 3"):
        sparse_mla(q, cache, torch.zeros(2, 4, dtype=torch.int64), SCALE, latent=LATENT)
    with pytest.raises(ValueError, match="cache rows have 160 bytes; 128 latents and 16 rope"):
        sparse_mla(q, cache[:, :160], torch.zeros(3, 4, dtype=torch.int64), SCALE, latent=LATENT)
    with pytest.raises(ValueError, match="multiple of 2 requests"):
        dense_mla(
            q,
            cache,
            torch.zeros(2, 1, dtype=torch.int64),
            torch.ones(3),
            SCALE,
            latent=LATENT,
            page_tokens=2,
        )

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.hopper.sparse_mla import INVARIANT_SPLIT_ENTRIES, sparse_mla
from kernels.sparse_mla import sparse_mla_reference
from tests.kernels.hopper.latent_rows import (
    LATENT,
    ROPE,
    SCALE,
    assert_attention_close,
    filled_cache,
    randn,
)

SLOTS = 96


def lists(tokens: int, entries: int) -> Tensor:
    """Slot lists with -1 anywhere, among them a first list without any entry. Slot 0 is not used:
    a masked entry must not read it."""
    generator = torch.Generator().manual_seed(3)
    slots = torch.randint(1, SLOTS, (tokens, entries), generator=generator)
    slots[torch.rand(tokens, entries, generator=generator) < 0.3] = -1
    slots[0] = -1
    return slots


def used(slots: Tensor) -> Tensor:
    return slots[slots >= 0].unique().long()


def attended(
    q: Tensor, slots: Tensor, kind: Literal["fp8", "bfloat16"], device: torch.device, **options: Any
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """What the kernel and what the reference say."""
    cache, rows = filled_cache(used(slots), SLOTS, kind, device)
    found = sparse_mla(q.to(device), cache, slots.to(device), SCALE, latent=LATENT, **options)
    expected = sparse_mla_reference(q.double(), rows, slots.tolist(), SCALE, latent=LATENT)
    return found, expected


@pytest.mark.parametrize("kind", ["fp8", "bfloat16"])
@pytest.mark.parametrize(
    ("heads", "entries", "splits"),
    [(16, 1, 1), (16, 33, 1), (16, 129, 4), (32, 70, 2), (64, 65, 1), (128, 64, 1)],
)
def test_matches_the_reference(
    device: torch.device, kind: Literal["fp8", "bfloat16"], heads: int, entries: int, splits: int
) -> None:
    q = randn(3 if heads < 64 else 2, heads, LATENT + ROPE, seed=4)
    slots = lists(len(q), entries)
    found, expected = attended(q, slots, kind, device, splits=splits, out_dtype=torch.float32)
    assert_attention_close(found, expected, torch.float32)
    assert found[0][0].eq(0).all() and found[1][0].eq(-torch.inf).all()


def test_a_part_without_entries_is_neutral(device: torch.device) -> None:
    slots = lists(3, 128)
    slots[1, :64] = -1
    slots[2, 32:] = -1
    q = randn(3, 16, LATENT + ROPE, seed=5)
    found, expected = attended(q, slots, "fp8", device, splits=4, out_dtype=torch.float32)
    assert_attention_close(found, expected, torch.float32)


def test_strided_queries_and_lists_of_either_width(device: torch.device) -> None:
    q = randn(16, 3, LATENT + ROPE + 8, seed=6).transpose(0, 1)[..., 8:]
    slots = lists(3, 80).int()[:, 7:47]
    found, expected = attended(q, slots, "fp8", device)
    assert found[0].dtype == torch.bfloat16
    assert_attention_close(found, expected, torch.bfloat16)


def test_more_rows_than_the_workspace_holds(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, slots = randn(5, 16, LATENT + ROPE, seed=7), lists(5, 64)
    whole, _ = attended(q, slots, "fp8", device, splits=2)
    monkeypatch.setattr("kernels.hopper.split_combine.WORKSPACE_BYTES", 2 * 2 * 16 * LATENT * 4)
    parts, _ = attended(q, slots, "fp8", device, splits=2)
    assert torch.equal(whole[0], parts[0]) and torch.equal(whole[1], parts[1])


def test_batch_invariant_rows_depend_on_themselves_alone(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert INVARIANT_SPLIT_ENTRIES % 64 == 0  # whole tiles
    monkeypatch.setattr("kernels.hopper.sparse_mla.INVARIANT_SPLIT_ENTRIES", 64)
    q, slots = randn(4, 16, LATENT + ROPE, seed=8), lists(4, 100)
    padded = torch.cat((slots, torch.full((4, 60), -1)), dim=1)
    cache, _ = filled_cache(used(slots), SLOTS, "fp8", device)
    together = sparse_mla(
        q.to(device), cache, padded.to(device), SCALE, latent=LATENT, batch_invariant=True
    )
    for t in range(4):
        alone = sparse_mla(
            q[t : t + 1].to(device),
            cache,
            slots[t : t + 1].to(device),
            SCALE,
            latent=LATENT,
            batch_invariant=True,
        )
        assert torch.equal(alone[0][0], together[0][t]) and torch.equal(alone[1][0], together[1][t])


def test_slots_past_two_gibibytes(device: torch.device) -> None:
    row_bytes = LATENT + 4 + 2 * ROPE
    last = 2**31 // row_bytes + 5
    cache = torch.empty(last + 1, row_bytes, dtype=torch.uint8, device=device)  # never touched
    few, rows = filled_cache(torch.tensor([1, 2]), 3, "fp8", device)
    cache[last - 1 :] = few[1:]
    q = randn(1, 16, LATENT + ROPE, seed=9)
    found = sparse_mla(
        q.to(device),
        cache,
        torch.tensor([[last, -1, last - 1]], device=device),
        SCALE,
        latent=LATENT,
        out_dtype=torch.float32,
    )
    expected = sparse_mla_reference(q.double(), rows, [[2, 1]], SCALE, latent=LATENT)
    assert_attention_close(found, expected, torch.float32)


def test_large_scores_neither_overflow_nor_lose_the_largest(device: torch.device) -> None:
    q = randn(2, 16, LATENT + ROPE, seed=10) * 1e3
    found, expected = attended(q, lists(2, 40), "bfloat16", device, out_dtype=torch.float32)
    assert found[0].isfinite().all()
    # Scores around 1e5 carry an error of some 1e-2 in float32, so only the winner is certain.
    torch.testing.assert_close(found[1].double().cpu(), expected[1], atol=0.1, rtol=1e-4)


@pytest.mark.parametrize("rows", [0, 2])
def test_nothing_to_do(device: torch.device, rows: int) -> None:
    cache, _ = filled_cache(torch.tensor([1]), 2, "fp8", device)
    q = randn(rows, 16, LATENT + ROPE, seed=11).to(device)
    slots = torch.empty(rows, 0, dtype=torch.int64, device=device)
    out, lse = sparse_mla(q, cache, slots, SCALE, latent=LATENT)
    assert out.shape == (rows, 16, LATENT) and out.eq(0).all() and lse.eq(-torch.inf).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda good: {"q": good["q"].float()}, "q is float32; must be bfloat16"),
        (lambda good: {"q": good["q"][:, :8]}, "number of heads is 8; allowed are 16, 32, 64, 128"),
        (lambda good: {"q": good["q"][..., ::2]}, "latent is 128|rope width is|strides"),
        (
            lambda good: {"q": good["q"][..., :-4]},
            "q's rope width is 12; it must be a power of two",
        ),
        (
            lambda good: {"cache": good["cache"][:, 4:]},
            r"cache has shape \[4, 160\]; it must be \[any, 164\]",
        ),
        (
            lambda good: {"cache": good["cache"].int()},
            "cache is int32; must be uint8 or bfloat16|cache has",
        ),
        (lambda good: {"cache": F.pad(good["cache"], (0, 2))[:, :164]}, "multiples of 4"),
        (
            lambda good: {"slots": good["slots"][:1]},
            r"slots has shape \[1, 8\]; it must be \[2, any\]",
        ),
        (lambda good: {"slots": good["slots"].short()}, "slots is int16; must be int32 or int64"),
        (lambda good: {"slots": good["slots"][:, ::2]}, "slots has strides"),
        (lambda good: {"scale": 0.0}, "scale is 0.0; it must be positive"),
        (lambda good: {"scale": float("nan")}, "scale is nan"),
        (lambda good: {"latent": 96}, "latent is 96; it must be a power of two"),
        (lambda good: {"splits": 3}, "splits is 3; allowed are 1, 2, 4, 8, 16"),
        (
            lambda good: {"splits": 2, "batch_invariant": True},
            "with batch_invariant it must be None",
        ),
        (lambda good: {"out_dtype": torch.float64}, "out_dtype is torch.float64"),
    ],
)
def test_what_is_not_supported_is_refused(
    device: torch.device, wrong: Callable[[dict[str, Any]], dict[str, Any]], message: str
) -> None:
    good = {
        "q": torch.zeros(2, 16, LATENT + ROPE, dtype=torch.bfloat16, device=device),
        "cache": torch.zeros(4, LATENT + 4 + 2 * ROPE, dtype=torch.uint8, device=device),
        "slots": torch.zeros(2, 8, dtype=torch.int64, device=device),
        "scale": 0.1,
        "latent": LATENT,
    }
    with pytest.raises(ValueError, match=message):
        sparse_mla(**good | wrong(good))

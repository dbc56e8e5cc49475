from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from kernels.hopper.dense_mla import INVARIANT_SPLIT_POSITIONS, dense_mla
from kernels.sparse_mla import sparse_mla_reference
from tests.kernels.hopper.latent_rows import (
    LATENT,
    ROPE,
    SCALE,
    assert_attention_close,
    filled_cache,
    randn,
)

PAGE_TOKENS, PAGES = 16, 12


def tables(visible: list[list[int]]) -> Tensor:
    """Shuffled pages for requests that see up to visible[b] positions; page 0 is nobody's."""
    order = (torch.randperm(PAGES - 1, generator=torch.Generator().manual_seed(0)) + 1).tolist()
    needed = [-(-max(rows) // PAGE_TOKENS) for rows in visible]
    table = torch.full((len(visible), max([*needed, 1])), -1)
    for b, count in enumerate(needed):
        for p in range(count):
            table[b, p] = order.pop()
    return table


def attended(
    q: Tensor,
    visible: list[list[int]],
    kind: Literal["fp8", "bfloat16"],
    device: torch.device,
    **options: Any,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """What the kernel and what the reference say; visible[b][i] belongs to row i of request b."""
    table = tables(visible)
    slots = [
        [int(table[b, s // PAGE_TOKENS]) * PAGE_TOKENS + s % PAGE_TOKENS for s in range(length)]
        for b, rows in enumerate(visible)
        for length in rows
    ]
    used = torch.tensor(sorted({slot for row in slots for slot in row}))
    cache, rows = filled_cache(used, PAGES * PAGE_TOKENS, kind, device)
    found = dense_mla(
        q.to(device),
        cache,
        table.to(device),
        torch.tensor(visible, device=device).flatten(),
        SCALE,
        latent=LATENT,
        page_tokens=PAGE_TOKENS,
        **options,
    )
    return found, sparse_mla_reference(q.double(), rows, slots, SCALE, latent=LATENT)


@pytest.mark.parametrize("kind", ["fp8", "bfloat16"])
@pytest.mark.parametrize(
    ("heads", "visible", "splits"),
    [
        (16, [[1], [33], [0], [64]], 1),
        (16, [[40, 41], [63, 64]], 2),
        (64, [[65]], 1),
    ],
)
def test_matches_the_reference(
    device: torch.device,
    kind: Literal["fp8", "bfloat16"],
    heads: int,
    visible: list[list[int]],
    splits: int,
) -> None:
    q = randn(sum(map(len, visible)), heads, LATENT + ROPE, seed=1)
    found, expected = attended(q, visible, kind, device, splits=splits, out_dtype=torch.float32)
    assert_attention_close(found, expected, torch.float32)


def test_launches_bounded_by_the_workspace_keep_requests_apart(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernels.hopper.split_combine.WORKSPACE_BYTES", 3 * 2 * 16 * LATENT * 4)
    q = randn(6, 16, LATENT + ROPE, seed=2)
    found, expected = attended(
        q, [[20, 21], [33, 34], [1, 2]], "fp8", device, splits=2, out_dtype=torch.float32
    )
    assert_attention_close(found, expected, torch.float32)


def test_batch_invariant_rows_depend_on_themselves_alone(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert INVARIANT_SPLIT_POSITIONS % 64 == 0  # whole tiles
    monkeypatch.setattr("kernels.hopper.dense_mla.INVARIANT_SPLIT_POSITIONS", 32)
    table = torch.tensor([[3, 5, 1, -1], [2, 7, 4, 6]])
    cache, _ = filled_cache(torch.arange(16, 128), 128, "fp8", device)
    q = randn(2, 16, LATENT + ROPE, seed=3).to(device)
    visible = torch.tensor([40, 64], device=device)
    options: dict[str, Any] = {
        "latent": LATENT,
        "page_tokens": PAGE_TOKENS,
        "batch_invariant": True,
    }
    both = dense_mla(q, cache, table.to(device), visible, SCALE, **options)
    alone = dense_mla(q[:1], cache, table[:1, :3].to(device), visible[:1], SCALE, **options)
    assert torch.equal(alone[0][0], both[0][0]) and torch.equal(alone[1][0], both[1][0])


def test_parts_by_the_number_of_rows_change_bits(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device of one SM a row alone is divided, and two are not: without batch_invariant that
    is what happens."""
    monkeypatch.setattr("kernels.hopper.dense_mla.device_sms", lambda _: 1)
    monkeypatch.setattr("kernels.hopper.split_combine.SPLIT_TILES", 1)
    table = torch.arange(20, dtype=torch.int32, device=device).expand(2, -1)
    cache, _ = filled_cache(torch.arange(320), 320, "fp8", device)
    q = randn(2, 16, LATENT + ROPE, seed=3).to(device)
    visible = torch.full((2,), 320, device=device)

    def first(rows: int, *, batch_invariant: bool) -> Tensor:
        found, _ = dense_mla(
            q[:rows], cache, table[:rows], visible[:rows], SCALE,
            latent=LATENT, page_tokens=PAGE_TOKENS, batch_invariant=batch_invariant,
            out_dtype=torch.float32,
        )  # fmt: skip
        return found[0]

    assert not torch.equal(first(1, batch_invariant=False), first(2, batch_invariant=False))
    assert torch.equal(first(1, batch_invariant=True), first(2, batch_invariant=True))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"page_tables": torch.zeros(3, 2, dtype=torch.int32)}, "2 rows.*multiple of 3 requests"),
        ({"page_tables": torch.zeros(0, 2, dtype=torch.int32)}, "multiple of 0 requests"),
        ({"page_tables": torch.zeros(2, 2)}, "page_tables is float32; must be int32 or int64"),
        ({"visible": torch.zeros(3, dtype=torch.int32)}, r"visible has shape \[3\]"),
        ({"page_tokens": 24}, "page_tokens is 24; it must be a power of two"),
        ({"page_tokens": 2**30}, "below 2.31 tokens"),
        ({"splits": 5}, "splits is 5; allowed are"),
    ],
)
def test_what_is_not_supported_is_refused(
    device: torch.device, wrong: dict[str, Any], message: str
) -> None:
    good = {
        "q": torch.zeros(2, 16, LATENT + ROPE, dtype=torch.bfloat16),
        "cache": torch.zeros(64, LATENT + ROPE, dtype=torch.bfloat16),
        "page_tables": torch.zeros(2, 2, dtype=torch.int32),
        "visible": torch.ones(2, dtype=torch.int32),
        "scale": 0.1,
        "latent": LATENT,
        "page_tokens": PAGE_TOKENS,
    }
    arguments = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in {**good, **wrong}.items()
    }
    with pytest.raises(ValueError, match=message):
        dense_mla(**arguments)

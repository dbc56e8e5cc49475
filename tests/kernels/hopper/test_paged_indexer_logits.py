from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.cache import IndexCache
from kernels.fp8 import quantise_groups
from kernels.hopper.paged_indexer_logits import paged_logits, paged_schedule
from kernels.indexer_logits import indexer_logits_reference

D, PAGE_TOKENS = 32, 16
CLOSE = {"atol": 2e-5, "rtol": 2e-5}
"""float32 sums of D products and of J heads against float64; the inputs are the same FP8 values.
On a GPU the tensor cores keep about 14 bits of a running sum: scores of order 1, 2^-12."""


def close(device: torch.device) -> dict[str, float]:
    return CLOSE if device.type == "cpu" else {"atol": 1e-3, "rtol": 1e-3}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def queries(*shape: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """FP8 queries [..., J, D] and weights [..., J] of both signs, with the scales in them."""
    values, scales = quantise_groups(draw(*shape, D, seed=0), D)
    weights = draw(*shape, seed=1) / shape[-1]
    return values.to(device), (weights * scales[..., 0]).to(device)


def paged(
    device: torch.device, visible: list[list[int]], heads: int = 8, pages_each: int = 20
) -> tuple[dict[str, Any], IndexCache]:
    """Requests whose pages are shuffled, in a cache whose every other byte is NaN."""
    requests, rows = len(visible), len(visible[0])
    cache = IndexCache(
        1,
        requests * pages_each + 3,
        page_tokens=PAGE_TOKENS,
        width=D,
        dtype="fp8",
        compute_dtype=torch.float32,
        device=device,
    )
    cache.pages.fill_(0xFF)
    order = torch.randperm(requests * pages_each + 3, generator=torch.Generator().manual_seed(4))[
        : requests * pages_each
    ]
    tables = order.view(requests, pages_each)
    for b, counts in enumerate(visible):
        positions = torch.arange(max(counts))
        slots = tables[b, positions // PAGE_TOKENS] * PAGE_TOKENS + positions % PAGE_TOKENS
        cache.write(0, slots.to(device), draw(max(counts), D, seed=10 + b).to(device))
        tables[b, -(-max(counts) // PAGE_TOKENS) :] = -1
    values, weights = queries(requests, rows, heads, device=device)
    return {
        "queries": values,
        "pages": cache.pages[0],
        "weights": weights,
        "visible": torch.tensor(visible, dtype=torch.int32, device=device),
        "block_tables": tables.int().to(device),
        "width": max(max(counts) for counts in visible),
        "page_tokens": PAGE_TOKENS,
    }, cache


def expected_paged(given: dict[str, Any], cache: IndexCache) -> Tensor:
    rows = []
    for b, counts in enumerate(given["visible"].tolist()):
        keys = cache.read_pages(0, given["block_tables"][b]).cpu().double()
        for n, count in enumerate(counts):
            q = given["queries"][b, n : n + 1].cpu().double()
            w = given["weights"][b, n : n + 1].cpu().double()
            row = torch.full((1, given["width"]), -math.inf, dtype=torch.float64)
            row[:, :count] = indexer_logits_reference(q, keys[:count], w, [count])
            rows.append(row)
    return torch.cat(rows)


@pytest.mark.parametrize(
    "visible",
    [
        [[1], [130], [0], [256], [37]],
        [[129, 130], [0, 1], [255, 256]],
        [[5, 6, 7], [126, 127, 128]],
        [[299, 300, 301, 302]],
    ],
)
def test_paged_scores_match_the_formula_in_float64(
    device: torch.device, visible: list[list[int]]
) -> None:
    given, cache = paged(device, visible)
    found = paged_logits(**given, fill=-math.inf)
    expected = expected_paged(given, cache)
    torch.testing.assert_close(found.cpu().double(), expected, **close(device))


def test_a_request_s_scores_do_not_depend_on_the_others_or_on_the_schedule(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, _ = paged(device, [[130], [7], [256]], heads=16)
    together = paged_logits(**given, fill=0.0)
    for sms in (1, 3):
        monkeypatch.setattr(
            "kernels.hopper.paged_indexer_logits.processors", lambda _, sms=sms: sms
        )
        schedule = paged_schedule(given["visible"])
        assert torch.equal(paged_logits(**given, schedule=schedule, fill=0.0), together)
    for b in range(3):
        one = {n: v[b : b + 1] if n in PER_REQUEST else v for n, v in given.items()}
        assert torch.equal(paged_logits(**one, fill=0.0), together[b : b + 1])


PER_REQUEST = ("queries", "weights", "visible", "block_tables")


def test_the_tokens_of_a_prompt_share_a_table_and_score_as_each_alone(
    device: torch.device,
) -> None:
    """As batch-invariant prefill does, with one row of the table for all of them."""
    given, _ = paged(device, [[130]])
    values, weights = queries(3, 1, 8, device=device)
    visible = torch.tensor([[128], [129], [130]], dtype=torch.int32, device=device)
    chunk = given | {"queries": values, "weights": weights, "visible": visible}
    chunk["block_tables"] = given["block_tables"].expand(3, -1)
    found = paged_logits(**chunk, fill=0.0)
    for t in range(3):
        one = chunk | {n: chunk[n][t : t + 1] for n in PER_REQUEST}
        assert torch.equal(paged_logits(**one, fill=0.0), found[t : t + 1])


def test_the_schedule_deals_out_every_tile_once_and_evenly(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    visible = [0, 1, 128, 129, 0, 5000, 64, 0] * 40  # more requests than are read at a time
    counts = torch.tensor(visible, dtype=torch.int32, device=device)[:, None]
    monkeypatch.setattr("kernels.hopper.paged_indexer_logits.processors", lambda _: 3)
    schedule = paged_schedule(counts).tolist()
    tiles = [-(-n // 128) for n in visible]
    share = -(-sum(tiles) // 12)
    for program, (request, tile) in enumerate(schedule):
        assert sum(tiles[:request]) + tile == min(program * share, sum(tiles))
        assert request == len(visible) or tile < tiles[request]


def test_more_visible_keys_than_the_result_holds_are_cut(device: torch.device) -> None:
    given, _ = paged(device, [[130], [64]])
    whole = paged_logits(**given, fill=0.0)
    assert torch.equal(paged_logits(**given | {"width": 100}, fill=0.0), whole[:, :100])


def test_a_program_stores_its_share_and_no_more(device: torch.device) -> None:
    given, _ = paged(device, [[300], [140]])
    whole = paged_logits(**given)
    # Two programs: the second tile of request 0 to its end; the first tile of request 1.
    schedule = torch.tensor([[0, 1], [1, 0], [1, 1]], dtype=torch.int32, device=device)
    found = paged_logits(**given, schedule=schedule, fill=7.25)
    assert (found[0, :128] == 7.25).all() and (found[1, 128:] == 7.25).all()
    assert torch.equal(found[0, 128:], whole[0, 128:])
    assert torch.equal(found[1, :128], whole[1, :128])


def test_pages_beyond_two_to_the_31_bytes(device: torch.device, tmp_path: Path) -> None:
    # Five pages 600 MB apart in a file that is a hole but for them.
    if device.type != "cpu":
        pytest.skip("a GPU has no memory that is only addresses")
    given, _ = paged(device, [[20]], pages_each=2)
    packed, distance = given["pages"], 600_000_000
    size = 4 * distance + packed.shape[1]
    hole = torch.from_file(str(tmp_path / "pages"), shared=True, size=size, dtype=torch.uint8)
    apart = hole.as_strided((5, packed.shape[1]), (distance, 1))
    apart[[0, 4]] = packed[given["block_tables"][0].long()]
    moved = given | {"pages": apart, "block_tables": torch.tensor([[0, 4]], dtype=torch.int32)}
    assert torch.equal(paged_logits(**moved), paged_logits(**given))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"page_tokens": 24}, "page_tokens is 24; it must be a power of two"),
        ({"page_tokens": 32}, "pages has shape"),
        ({"width": 321}, "width is 321; block_tables name 20 pages, at most 320 keys"),
        ({"visible": torch.zeros(1, 2, dtype=torch.int32)}, r"visible has shape \[1, 2\]"),
        (
            {"queries": torch.zeros(1, 5, 8, D).to(torch.float8_e4m3fn)},
            "query rows a request is 5; allowed are 1, 2, 3, 4",
        ),
    ],
)
def test_what_the_paged_kernel_does_not_support_is_named(
    device: torch.device, change: dict[str, Any], message: str
) -> None:
    given, _ = paged(device, [[40]])
    given |= {n: v.to(device) if isinstance(v, Tensor) else v for n, v in change.items()}
    with pytest.raises(ValueError, match=message):
        paged_logits(**given)

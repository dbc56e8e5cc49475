from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.hopper.topk import top_k_slots
from kernels.topk import select_top_k_reference

INF = math.inf
TILE = 64
"""As small as may be, so that short rows take the ways of long ones."""


def expected_rows(scores: Tensor, visible: list[int], k: int) -> list[list[int]]:
    rows = []
    for row, n in zip(scores.cpu(), visible, strict=True):
        best = list(range(n)) if n <= k else select_top_k_reference(row[None, :n], k)[0]
        rows.append(best + [-1] * (k - len(best)))
    return rows


def select(scores: Tensor, visible: list[int], k: int, **options: Any) -> list[list[int]]:
    options = {"tile": TILE} | options
    counts = torch.tensor(visible, dtype=torch.int32, device=scores.device)
    return top_k_slots(scores, counts, k, **options).tolist()


def check(scores: Tensor, visible: list[int], k: int, device: torch.device, **options: Any) -> None:
    expected = expected_rows(scores, visible, k)
    for split in (False, True):
        assert select(scores.to(device), visible, k, split=split, **options) == expected


def normal(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, length, generator=torch.Generator().manual_seed(seed))


def test_rows_of_every_kind_of_length(device: torch.device) -> None:
    # None, one, k - 1, k, k + 1, the tile, one more (a sample is taken from here), the whole.
    visible = [0, 1, 7, 8, 9, TILE, TILE + 1, 200, 499, 500]
    check(normal(len(visible), 500), visible, 8, device)


def test_what_stands_after_the_visible_scores_is_not_read(device: torch.device) -> None:
    visible = [5, 40, 300]
    scores = normal(3, 320)
    expected = expected_rows(scores, visible, 8)
    for after in (math.nan, INF):
        for row, n in enumerate(visible):
            scores[row, n:] = after
        for split in (False, True):
            assert select(scores.to(device), visible, 8, split=split) == expected


def test_rows_of_at_most_k_scores_are_not_read_at_all(device: torch.device) -> None:
    scores = torch.full((2, 300), math.nan, device=device)
    assert select(scores, [3, 8], 8) == [[0, 1, 2, *[-1] * 5], list(range(8))]


def test_rows_of_one_score(device: torch.device) -> None:
    # The interval shrinks onto this score's key from whatever side its bits make it.
    values = torch.tensor([0.0, 1.0, -3.0, 1.0 + 2**-23, 0.3, -1e-40])
    assert select(values[:, None].repeat(1, 65).to(device), [65] * 6, 4) == [[0, 1, 2, 3]] * 6


@pytest.mark.parametrize("length", [50, 100])
def test_ties_go_to_the_lowest_positions(device: torch.device, length: int) -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, 1.0 + 2**-23, 2.5])
    scores = values[torch.randint(0, 6, (2, length), generator=generator)]
    scores[1] = torch.tensor([0.0, -0.0]).repeat(length // 2)
    check(scores, [length] * 2, 16, device)


def test_what_is_never_chosen(device: torch.device) -> None:
    scores = torch.full((6, 100), -INF)
    scores[0, [3, 90]] = torch.tensor([-5.0, -3e38])
    scores[1] = math.nan
    scores[2, 90:] = torch.arange(10.0)
    scores[3, 10:90] = -1e-40
    scores[4, ::2] = INF
    scores[5] = normal(1, 100)[0]
    scores[5, ::3] = math.nan
    check(scores, [100] * 6, 16, device)
    expected = expected_rows(scores, [60] * 6, 16)
    assert select(scores.to(device), [60] * 6, 16) == expected


def test_scores_that_differ_in_the_last_bit_only(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 150, (2, 300), generator=generator, dtype=torch.int32)
    one, minus_one = (torch.tensor(x).view(torch.int32) for x in (1.0, -1.0))
    scores = torch.stack((bits[0] + one, bits[1] + minus_one)).view(torch.float32)
    check(scores, [300, 300], 16, device)


def test_a_sample_that_misleads_costs_time_only(device: torch.device) -> None:
    # Every place a sample may look at is low, or high: too many or too few reach its threshold.
    n = 160
    start = torch.arange(TILE // 2 // 8) * (n - 8) // (TILE // 2 // 8) // 8 * 8
    sampled = (start[:, None] + torch.arange(8)).flatten()
    scores = normal(2, n)
    scores[0, sampled] -= 100
    scores[1, sampled] += 100
    check(scores, [n, n], 12, device)


def test_scores_over_the_whole_range_of_floats(device: torch.device) -> None:
    bits = torch.randint(
        -(2**31), 2**31, (3, 400), generator=torch.Generator().manual_seed(3), dtype=torch.int64
    )
    check(bits.to(torch.int32).view(torch.float32), [400, 390, 60], 12, device)


@pytest.mark.parametrize("k", [1, 5, 32])
def test_k_of_any_size_up_to_half_a_tile(device: torch.device, k: int) -> None:
    check(normal(2, 300), [300, 45], k, device)


def test_rows_with_a_stride(device: torch.device) -> None:
    whole = normal(4, 400)
    check(whole[:, 3:303][::2], [300, 299], 8, device)


def test_neither_the_other_rows_nor_the_tile_change_a_row(device: torch.device) -> None:
    scores, visible = normal(5, 400).to(device), [400, 9, 130, 64, 333]
    together = select(scores, visible, 8)
    for row, n in enumerate(visible):
        assert select(scores[row : row + 1], [n], 8) == [together[row]]
    assert select(scores, visible, 8, tile=256) == together
    assert select(scores, visible, 8, split=True) == together


@pytest.mark.parametrize("split", [False, True])
def test_positions_become_slots_through_the_block_table(device: torch.device, split: bool) -> None:
    page_tokens, k = 16, 8
    generator = torch.Generator().manual_seed(5)
    tables = torch.randperm(2**20, generator=generator)[:40].view(2, 20).int()
    visible, requests = [300, 4, 33, 320], [1, 1, 0, 1]
    scores = normal(4, 320)
    given = {
        "block_tables": tables.to(device),
        "page_tokens": page_tokens,
        "split": split,
    }

    def slots(requests: list[int]) -> list[list[int]]:
        rows = expected_rows(scores, visible, k)
        return [
            [-1 if p < 0 else int(tables[b, p // page_tokens]) * page_tokens + p % page_tokens
             for p in row]
            for b, row in zip(requests, rows, strict=True)
        ]  # fmt: skip

    of_rows = torch.tensor(requests, dtype=torch.int32, device=device)
    assert select(scores.to(device), visible, k, requests=of_rows, **given) == slots(requests)
    # Without `requests` the rows belong to the requests in equal numbers, in order.
    assert select(scores.to(device), visible, k, **given) == slots([0, 0, 1, 1])


def test_pages_beyond_a_row_s_length_are_not_read(device: torch.device) -> None:
    tables = torch.tensor([[7, 3, *[-1] * 18]], dtype=torch.int32, device=device)
    found = select(normal(1, 320).to(device), [30], 32, block_tables=tables, page_tokens=16)
    assert found == [[*range(112, 128), *range(48, 62), -1, -1]]


def test_scores_beyond_two_to_the_31_elements(device: torch.device, tmp_path: Path) -> None:
    # Two rows 9 GB apart in a file that is a hole but for them: a wrapped offset lands elsewhere.
    if device.type != "cpu":
        pytest.skip("a GPU has no memory that is only addresses")
    distance = 2**31 + 2**28
    hole = torch.from_file(str(tmp_path / "scores"), shared=True, size=distance + 300)
    scores = hole.as_strided((2, 300), (distance, 1))
    scores.copy_(normal(2, 300))
    for split in (False, True):
        found = select(scores, [300, 300], 8, split=split)
        assert found == expected_rows(scores, [300, 300], 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": torch.zeros(2, 9, dtype=torch.float64)}, "scores is float64; must be float32"),
        ({"visible": torch.zeros(2, dtype=torch.int64)}, "visible is int64; must be int32"),
        ({"visible": torch.zeros(3, dtype=torch.int32)}, r"visible has shape \[3\]"),
        ({"k": 0}, "k is 0; with tiles of 64 it must be from 1 to 32"),
        ({"k": 33}, "k is 33"),
        ({"tile": 100}, "tile is 100; it must be a power of two"),
        ({"block_tables": torch.zeros(3, 1, dtype=torch.int32)}, "2 rows for 3 block_tables"),
        (
            {"block_tables": torch.zeros(1, 1, dtype=torch.int32), "page_tokens": 48},
            "page_tokens is 48",
        ),
    ],
)
def test_what_the_kernels_do_not_support_is_named(
    device: torch.device, change: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {
        "scores": torch.zeros(2, 9),
        "visible": torch.zeros(2, dtype=torch.int32),
        "k": 4,
        "tile": TILE,
    } | change
    given = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in given.items()}
    with pytest.raises(ValueError, match=message):
        top_k_slots(**given)


def test_many_rows_take_several_launches(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, tables = normal(6, 100), torch.arange(14, dtype=torch.int32).flip(0).view(2, 7)
    given = {"block_tables": tables.to(device), "page_tokens": 16}
    at_once = select(scores.to(device), [100] * 6, 4, split=False, **given)
    assert at_once[5] != at_once[2]
    monkeypatch.setattr("kernels.hopper.topk.WORKSPACE_BYTES", 1)
    for split in (False, True):
        assert select(scores.to(device), [100] * 6, 4, split=split, **given) == at_once


def test_no_rows_give_no_rows(device: torch.device) -> None:
    assert select(torch.zeros(0, 100, device=device), [], 8) == []

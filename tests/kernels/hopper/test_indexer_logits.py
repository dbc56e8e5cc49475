from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.cache import IndexCache
from kernels.fp8 import dequantise_groups, quantise_groups
from kernels.hopper.indexer_logits import gather_index_keys, prefill_logits
from kernels.indexer_logits import indexer_logits, indexer_logits_reference

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


def ragged(device: torch.device, heads: int) -> dict[str, Any]:
    """Three sequences of 70, 0 and 130 keys; rows of the last see parts of its keys, one none."""
    lengths, rows = [70, 0, 130], [3, 0, 6]
    starts = [begin for begin, n in zip([0, 70, 70], rows, strict=True) for _ in range(n)]
    ends = [1, 69, 70, 71, 70, 199, 200, 200, 73]
    keys, scales = quantise_groups(draw(sum(lengths), D, seed=2), D)
    values, weights = queries(sum(rows), heads, device=device)
    int32 = {"dtype": torch.int32, "device": device}
    return {
        "queries": values,
        "keys": keys.to(device),
        "key_scales": scales[:, 0].contiguous().to(device),
        "weights": weights,
        "starts": torch.tensor(starts, **int32),
        "ends": torch.tensor(ends, **int32),
        "width": 130,
    }


def expected_ragged(given: dict[str, Any]) -> Tensor:
    """In float64, on what the FP8 values stand for; -inf outside the ranges."""
    host = {n: v.cpu() if isinstance(v, Tensor) else v for n, v in given.items()}
    keys = dequantise_groups(host["keys"], host["key_scales"][:, None], torch.float64)
    rows = []
    for t, (start, end) in enumerate(zip(host["starts"], host["ends"], strict=True)):
        q, w = host["queries"][t : t + 1].double(), host["weights"][t : t + 1].double()
        row = torch.full((1, host["width"]), -math.inf, dtype=torch.float64)
        mine = keys[start:end]
        row[:, : len(mine)] = indexer_logits_reference(q, mine, w, [len(mine)])
        rows.append(row)
    return torch.cat(rows)


@pytest.mark.parametrize("heads", [8, 64])
def test_ragged_scores_match_the_formula_in_float64(device: torch.device, heads: int) -> None:
    given = ragged(device, heads)
    if heads == 64:  # the reference goes pair by pair and head by head
        given |= {n: given[n][2:5] for n in ("queries", "weights", "starts", "ends")}
    found = prefill_logits(**given, fill=-math.inf)
    expected = expected_ragged(given)
    torch.testing.assert_close(found.cpu().double(), expected, **close(device))
    assert (expected.isfinite() & (expected < 0)).any(), "negative scores must occur"


def test_nothing_is_stored_outside_a_row_s_range(device: torch.device) -> None:
    given = ragged(device, 8)
    found = prefill_logits(**given, fill=7.25)
    counts = (given["ends"] - given["starts"]).tolist()
    assert counts[4] == 0
    for row, count in zip(found.cpu(), counts, strict=True):
        assert (row[count:] == 7.25).all() and (row[:count] != 7.25).all()
    assert found.stride(0) % 256 == 0


def test_a_range_wider_than_the_result_is_cut(device: torch.device) -> None:
    given = ragged(device, 8)
    whole = prefill_logits(**given, fill=7.25)
    assert torch.equal(prefill_logits(**given | {"width": 100}, fill=7.25), whole[:, :100])


def test_nan_keys_outside_a_row_s_range_stay_outside(device: torch.device) -> None:
    given = ragged(device, 8)
    clean = prefill_logits(**given, fill=0.0)
    given["keys"].view(torch.uint8)[199:] = 0x7F
    given["key_scales"][199:] = math.nan
    found = prefill_logits(**given, fill=0.0)
    untouched = [0, 1, 2, 3, 4, 5, 8]
    assert torch.equal(found[untouched], clean[untouched])
    assert found[6, :129].isfinite().all() and found[6, 129:].isnan().all()


def test_few_rows_share_their_keys_among_programs_and_change_no_bit(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    length = 2100
    keys, scales = quantise_groups(draw(length, D, seed=3), D)
    values, weights = queries(3, 64, device=device)
    int32 = {"dtype": torch.int32, "device": device}
    given = {
        "queries": values,
        "keys": keys.to(device),
        "key_scales": scales[:, 0].contiguous().to(device),
        "weights": weights,
        "starts": torch.tensor([5, 0, 1000], **int32),
        "ends": torch.tensor([2100, 2000, 2050], **int32),
        "width": length,
    }
    monkeypatch.setattr("kernels.hopper.indexer_logits.processors", lambda _: 0)
    whole = prefill_logits(**given, fill=-math.inf)
    monkeypatch.setattr("kernels.hopper.indexer_logits.processors", lambda _: 3)
    assert torch.equal(prefill_logits(**given, fill=-math.inf), whole)
    q, k = values.float(), dequantise_groups(keys, scales, torch.float32).to(device)
    for row, (start, end) in enumerate(((5, 2100), (0, 2000), (1000, 2050))):
        visible = torch.tensor([end - start], device=device)
        expected = indexer_logits(q[row : row + 1], k[start:end], weights[row : row + 1], visible)
        torch.testing.assert_close(whole[row : row + 1, : end - start], expected, **close(device))


def test_scores_beyond_two_to_the_31_elements(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rows over 1 GB apart in a file that is a hole but for them: a wrapped offset lands elsewhere.
    if device.type != "cpu":
        pytest.skip("a GPU has no memory that is only addresses")
    given = ragged(device, 8)
    expected = prefill_logits(**given, fill=0.0)
    distance = 2**28
    hole = torch.from_file(str(tmp_path / "scores"), shared=True, size=9 * distance)
    apart = hole.as_strided((9, 130), (distance, 1))
    monkeypatch.setattr("kernels.hopper.indexer_logits.empty_logits", lambda *_: apart)
    assert torch.equal(prefill_logits(**given), expected)


def test_keys_are_gathered_from_shuffled_pages(device: torch.device) -> None:
    cache = IndexCache(
        1,
        9,
        page_tokens=PAGE_TOKENS,
        width=D,
        dtype="fp8",
        compute_dtype=torch.float32,
        device=device,
    )
    cache.write(0, torch.arange(9 * PAGE_TOKENS, device=device), draw(144, D, seed=5).to(device))
    tables = torch.tensor([[8, 1, 6, 2], [0, -1, -1, -1], [-1] * 4, [3, 5, 7, 4]], device=device)
    ends = [37, 38, 38, 102]
    offsets = torch.tensor([0, *ends], dtype=torch.int32, device=device)
    keys, scales = gather_index_keys(
        cache.pages[0], tables.int(), offsets, 102, width=D, page_tokens=PAGE_TOKENS
    )
    found = dequantise_groups(keys, scales[:, None], torch.float32)
    for b, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
        assert torch.equal(found[begin:end], cache.read_pages(0, tables[b])[: end - begin])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": torch.zeros(9, 8, D)}, "queries is float32; must be float8_e4m3fn"),
        ({"queries": torch.zeros(9, 12, D).to(torch.float8_e4m3fn)}, "index heads is 12"),
        ({"queries": torch.zeros(9, 8, 48).to(torch.float8_e4m3fn)}, "the index width is 48"),
        ({"keys": torch.zeros(200, 64).to(torch.float8_e4m3fn)}, r"keys has shape \[200, 64\]"),
        ({"starts": torch.zeros(9, dtype=torch.int64)}, "starts is int64; must be int32"),
        ({"weights": torch.zeros(9, 16)[:, :8]}, "weights has strides .* must be contiguous"),
    ],
)
def test_what_the_ragged_kernel_does_not_support_is_named(
    device: torch.device, change: dict[str, Tensor], message: str
) -> None:
    given = ragged(device, 8) | {n: v.to(device) for n, v in change.items()}
    with pytest.raises(ValueError, match=message):
        prefill_logits(**given)

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.topk import (
    positions_of,
    select_top_k,
    select_top_k_reference,
    top_k_positions,
)

INF = math.inf

# Few values, so that most rows are full of ties; with what must never be selected among them.
TIED = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.0 + 2**-23, -INF, INF, math.nan])
CLOSE = st.integers(0, 40).map(lambda n: 1.0 + n * 2**-23)


@st.composite
def score_rows(draw: st.DrawFn) -> list[list[float]]:
    length = draw(st.integers(1, 40))
    element = draw(st.sampled_from([TIED, CLOSE]))
    row = st.lists(element, min_size=length, max_size=length)
    return draw(st.lists(row, min_size=1, max_size=5))


def chosen(scores: torch.Tensor, k: int) -> list[list[int]]:
    """Positions per row, through mask and short cut, with the -1 padding checked and removed."""
    rows = positions_of(select_top_k(scores, k), k).tolist()
    positions, complete = top_k_positions(scores, k)
    assert positions.tolist() == rows
    assert not (complete and (positions < 0).any())
    for row in rows:
        count = sum(p >= 0 for p in row)
        assert all(p == -1 for p in row[count:]), "packed left, padded with -1"
        assert row[:count] == sorted(set(row[:count])), "ascending, no position twice"
    return [[p for p in row if p >= 0] for row in rows]


@given(score_rows(), st.integers(1, 50))
def test_selection_is_what_sorting_gives(rows: list[list[float]], k: int) -> None:
    scores = torch.tensor(rows)
    assert chosen(scores, k) == select_top_k_reference(scores, k)


@given(score_rows(), st.integers(1, 12), st.integers(1, 30))
def test_padding_and_the_other_rows_change_nothing(
    rows: list[list[float]], k: int, padding: int
) -> None:
    scores = torch.tensor(rows)
    padded = torch.cat((scores, torch.full((len(rows), padding), -INF)), dim=1)
    assert chosen(padded, k) == chosen(scores, k)
    alone = [chosen(scores[t : t + 1], k)[0] for t in range(len(rows))]
    assert alone == chosen(scores, k)


def test_ties_go_to_the_lowest_positions() -> None:
    assert chosen(torch.tensor([[2.0, 1.0, 2.0, 1.0, 1.0, 3.0]]), 4) == [[0, 1, 2, 5]]
    assert chosen(torch.zeros(1, 10_000), 2048) == [list(range(2048))]


def test_thousands_of_scores_that_differ_in_the_last_bit_only() -> None:
    # A top-k that ranks by the upper bits, or keeps candidates in a fixed buffer, fails here.
    generator = torch.Generator().manual_seed(0)
    low_bits = torch.randint(0, 6000, (2, 20_000), generator=generator, dtype=torch.int32)
    scores = (low_bits + torch.tensor(1.0).view(torch.int32)).view(torch.float32)
    assert chosen(scores, 2048) == select_top_k_reference(scores, 2048)


@pytest.mark.parametrize("filler", [-INF, math.nan])
def test_fewer_valid_scores_than_k_select_those_and_no_more(filler: float) -> None:
    scores = torch.full((1, 100), filler)
    scores[0, [3, 70]] = torch.tensor([-5.0, -9.0])
    assert chosen(scores, 16) == [[3, 70]]
    assert chosen(torch.full((2, 100), filler), 16) == [[], []]


def test_negative_scores_beat_masked_ones() -> None:
    scores = torch.tensor([[-INF, -3.0, -1.0, -2.0, -INF]])
    assert chosen(scores, 2) == [[2, 3]]


def test_more_selected_than_k_positions_is_an_error() -> None:
    with pytest.raises(IndexError):
        positions_of(torch.ones(1, 5, dtype=torch.bool), 4)


def test_without_a_tie_at_the_kth_score_nothing_is_padded() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.stack([torch.randperm(50, generator=generator) for _ in range(4)]).float()
    positions, complete = top_k_positions(scores, 7)
    assert complete
    assert positions.tolist() == select_top_k_reference(scores, 7)

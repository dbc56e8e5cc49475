from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from loadtest.recording import runs_of
from loadtest.tokens import TokenIds, cut, text_tokens, token_ids

RUNS = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=8)


def test_fresh_ids_are_never_the_same() -> None:
    ids = TokenIds()
    assert len({ids.fresh() for _ in range(1000)}) == 1000


@given(RUNS, st.integers(0, 80))
def test_a_text_cut_short_is_its_beginning(runs: list[tuple[int, int]], tokens: int) -> None:
    whole = token_ids(runs)
    assert len(whole) == text_tokens(runs)
    assert token_ids(cut(runs, tokens)) == whole[:tokens]


@given(st.lists(st.integers(0, 3), max_size=60))
def test_runs_of_equal_tokens_give_the_tokens_back(ids: list[int]) -> None:
    runs = runs_of(ids)
    assert token_ids(runs) == ids
    assert all(one[0] != other[0] for one, other in pairwise(runs))

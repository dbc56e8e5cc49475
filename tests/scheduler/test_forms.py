from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.forms import FormPolicy, break_even_tokens
from scheduler.plan import Form

TOP_K, BREAK_EVEN = 2048, 6963
Attention = Literal["auto", "sparse", "dense"]


def policy(attention: Attention) -> FormPolicy:
    return FormPolicy(attention, TOP_K, BREAK_EVEN)


@pytest.mark.parametrize(
    ("attention", "start", "count", "form"),
    [
        ("auto", 0, 1, "mha"),
        ("auto", 0, 2048, "mha"),
        ("auto", 0, 2049, "masked_mha"),
        ("auto", 2048, 1, "mqa"),
        ("auto", 2047, 1, "dense_mqa"),
        ("auto", 100, 1, "dense_mqa"),
        ("auto", 1024, 1024, "mha"),
        ("auto", 6000, 963, "masked_mha"),
        ("auto", 6000, 964, "mqa"),
        ("auto", 100_000, 512, "mqa"),
        ("sparse", 0, 1, "masked_mha"),
        ("sparse", 0, 64, "masked_mha"),
        ("sparse", 10, 1, "mqa"),
        ("sparse", 6900, 64, "mqa"),
        ("dense", 0, 100_000, "mha"),
        ("dense", 100_000, 1, "dense_mqa"),
    ],
)
def test_the_table_of_forms(attention: Attention, start: int, count: int, form: Form) -> None:
    assert policy(attention).form(start, count) == form


@given(
    st.sampled_from(["auto", "sparse", "dense"]), st.integers(0, 200_000), st.integers(1, 10_000)
)
def test_selection_is_skipped_only_where_it_changes_nothing_or_was_told_to(
    attention: Attention, start: int, count: int
) -> None:
    skips = policy(attention).form(start, count) in ("mha", "dense_mqa")
    within = start + count <= TOP_K
    assert skips == (attention == "dense" or (attention == "auto" and within))


def test_the_break_even_of_the_published_model_is_position_6963() -> None:
    sizes = {"kv_lora_rank": 512, "qk_rope": 64, "qk_nope": 128, "v_head": 128}
    assert break_even_tokens(top_k=2048, **sizes) == 6963
    absorbed = 2048 * (512 + 64 + 512)
    for tokens, cheaper in ((6963, True), (6964, False)):
        assert (tokens * (128 + 64 + 128) <= absorbed) == cheaper

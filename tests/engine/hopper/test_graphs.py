"""Which graph a step takes, and what lies in it; capturing takes a GPU (tests/gpu)."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.config import PAGE_TOKENS
from engine.hopper.graphs import Bucket, buckets, decode_batch, padded, row_counts, smallest
from scheduler.plan import Form, Row


def decode(start: int, form: Form = "mqa", slot: int = 0) -> Row:
    return Row(slot=slot, start=start, count=1, sample="last", form=form)


@given(st.integers(1, 600))
def test_row_counts_ascend_to_the_most_and_are_not_far_apart(most: int) -> None:
    counts = row_counts(most)
    assert counts[-1] == most and counts[0] >= 1
    assert all(a < b <= max(2 * a, a + 8) for a, b in pairwise(counts))


def test_buckets_come_largest_first_and_reach_the_longest_context() -> None:
    found = buckets(64, 163_840, 2048, dense=False)
    assert found[0].rows == 64 and found[0].context == 163_840
    assert [bucket.rows for bucket in found] == sorted((b.rows for b in found), reverse=True)
    contexts = {bucket.form: set() for bucket in found}
    for bucket in found:
        contexts[bucket.form].add(bucket.context)
    assert contexts == {"mqa": {8192, 65_536, 163_840}, "dense_mqa": {2048}}


def test_without_selection_every_context_is_dense() -> None:
    assert {b.form for b in buckets(2, 10_000, 2048, dense=True)} == {"dense_mqa"}
    assert {b.context for b in buckets(2, 10_000, 2048, dense=True)} == {8192, 10_000}
    assert {b.context for b in buckets(1, 100, 2048, dense=False)} == {100}


def test_where_every_row_selects_there_is_no_other_form() -> None:
    found = buckets(2, 10_000, 2048, dense=False, sparse=True)
    assert {(b.form, b.context) for b in found} == {("mqa", 8192), ("mqa", 10_000)}


def test_a_step_takes_the_smallest_graph_that_holds_it() -> None:
    known = buckets(8, 20_000, 2048, dense=False)
    assert smallest(known, [decode(2999)]) == Bucket(1, 8192, "mqa")
    assert smallest(known, [decode(2999)] * 3) == Bucket(4, 8192, "mqa")
    assert smallest(known, [decode(8191), decode(3)]) == Bucket(2, 8192, "mqa")
    assert smallest(known, [decode(8192)]) == Bucket(1, 20_000, "mqa")
    assert smallest(known, [decode(100, "dense_mqa")] * 5) == Bucket(8, 2048, "dense_mqa")


def test_rows_within_top_k_beside_longer_ones_take_lists() -> None:
    known = buckets(8, 20_000, 2048, dense=False)
    assert smallest(known, [decode(9000), decode(100, "dense_mqa")]) == Bucket(2, 20_000, "mqa")


def test_prefill_and_what_is_too_much_take_none() -> None:
    known = buckets(8, 20_000, 2048, dense=False)
    assert smallest(known, [decode(100)] * 9) is None
    assert smallest(known, [decode(20_000)]) is None
    assert smallest(known, [Row(slot=0, start=0, count=2, sample="last", form="mqa")]) is None
    assert smallest(known, [decode(100, "masked_mha")]) is None
    assert smallest([], [decode(100)]) is None


def test_a_batch_of_padded_integers() -> None:
    bucket = Bucket(4, 130, "mqa")
    integers = padded(bucket, ([11, 12], [129, 5], [70, 3], [2, 0]))
    table = torch.tensor([[8, 9, 10, 11], [0, 0, 0, 0], [4, 5, 6, 7]], dtype=torch.int32)
    batch = decode_batch(bucket, torch.tensor([*integers, 99, 99]), table)
    assert batch.padded
    assert batch.token_ids.tolist() == [11, 12, 0, 0]
    assert batch.slots.tolist() == [70, 3, -1, -1]
    (group,) = batch.groups
    rows = group.kernel_rows
    assert rows.visible.tolist() == [130, 6, 0, 0] and rows.visible.dtype == torch.int32
    pages = -(-130 // PAGE_TOKENS)
    assert rows.page_tables.tolist()[:2] == [[4, 5, 6][:pages], [8, 9, 10][:pages]]
    assert rows.longest == 130 and rows.prefill is None
